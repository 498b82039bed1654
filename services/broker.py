"""The key broker: releases segment keys to attested runners and provers, and logs it.

It runs at the models' owner's, not at who serves them:

    BENTOML_SECURE_BROKER_FOLDER=broker bentoml serve services.broker:Broker
"""

from __future__ import annotations

from typing import Any

from bentoml_secure.serving.broker_service import broker_service

Broker: Any = broker_service("Broker", module=__name__)
