"""The encoder with replicas that cheat while a file tells them to.

``$ENCODER_CHEATS`` is a folder; a file in it of a replica's name holds the name of a
cheat, see ``bentoml_secure.testing.cheats``. Plan, scenarios and configuration are
those of ``services/encoder.py``, so callers trust both alike: only other replicas can
tell.

    bentoml serve examples.encoder.cheating:Encoder
"""

from __future__ import annotations

import os
from pathlib import Path

from bentoml_secure.testing.cheats import cheat_by_file
from services.encoder import Encoder

FOLDER = "ENCODER_CHEATS"

cheat_by_file(Encoder, Path(os.environ[FOLDER]))

__all__ = ["FOLDER", "Encoder"]
