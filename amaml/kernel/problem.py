"""The structure that is passed to a kernel: `Problem` of problem.h, field by field."""

from __future__ import annotations

import ctypes

ACTIVATIONS = ("tanh", "sigmoid", "softplus", "relu")
"""In the order of problem.h's enumeration."""
_INTEGERS = (
    "layers activation batch parameters support_points query_points horizons threads chunk "
    "stages order adaptive guard max_steps checkpoints room controlled tensors backward "
    "proximal_in_query want_length want_rates want_proximal"
)
_NUMBERS = "proximal rtol atol stability_limit step_cap"
_POINTERS = (
    "widths sizes times weights counts steps a b error midpoint theta rates power_start scales "
    "support_x support_y query_x query_y gradients through_theta by_rates by_proximal by_length losses ends lambda_max "
    "accepted rejected gradient_count hvp_count code failed_at value bound"
)


class KernelProblem(ctypes.Structure):
    """The input of a solve and the places of its results."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _INTEGERS.split()),
        *((name, ctypes.c_double) for name in _NUMBERS.split()),
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
    ]

    def sizes_and_switches(self) -> bytes:
        """The bytes of all integers, with the number of tasks set to 1: what the memory needed for one task depends on."""
        of_one = type(self).from_buffer_copy(self)
        of_one.batch = 1
        return bytes(of_one)[: type(self).proximal.offset]
