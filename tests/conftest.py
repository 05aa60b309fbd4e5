"""What all tests share: reproducible property tests.

By default hypothesis tries the same examples every time, so that a run says something about the code and not about
luck. `VINTX_HYPOTHESIS=random` looks for new ones.
"""

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("VINTX_HYPOTHESIS", "same"))
