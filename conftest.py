"""For all tests."""

import signal

# A shell that starts the tests in the background has Ctrl-C ignored, which children inherit:
# servers and clients that tests interrupt would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)
