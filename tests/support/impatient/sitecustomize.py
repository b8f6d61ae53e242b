"""Python on whose path this lies sleeps a tenth of what Flower's programs sleep between looks for work and replies."""

import time

PAUSES = (0.5, 1, 3)  # seconds
sleep = time.sleep
time.sleep = lambda seconds: sleep(seconds / 10 if seconds in PAUSES else seconds)
