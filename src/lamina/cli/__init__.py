"""The command line."""

import gc

# Starting makes tens of thousands of objects that all stay: to look for garbage among them every
# 700, as is the default, costs a tenth of the time until a short command has ended.
gc.set_threshold(50_000)
