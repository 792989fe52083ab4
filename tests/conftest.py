"""One torch thread: the tests' tensors are small, and idle threads that spin cost more than they bring."""

import torch

torch.set_num_threads(1)
