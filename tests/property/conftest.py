from __future__ import annotations

from hypothesis import settings

# A machine that does other things too is slow now and then; pytest's own timeout ends
# what hangs.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
