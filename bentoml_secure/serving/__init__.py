"""BentoML services whose answers carry receipts.

The only room that imports bentoml. Data flow of one request:

    recorder (ASGI, entry)   commits to the bodies, issues the receipt
      -> engine.infer        segments in plan order, a committee for each
        -> channel           one exchange with one replica over HTTP or in process
          -> runner (ASGI)   runs its segment, signs a statement
"""

from bentoml_secure.serving.service import service

__all__ = ["service"]
