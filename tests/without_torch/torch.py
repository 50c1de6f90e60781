"""In PyTorch's place, for processes that are started as users start them: without it.

tensorboardX would import it where it can, for a second or two of every start.
"""

raise ImportError("what users start has no PyTorch")
