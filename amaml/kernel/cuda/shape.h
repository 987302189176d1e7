// What the kernel is compiled for: the network's widths, its activation and the points that are looked at together. All of them being
// known, every offset is a constant and short loops are unrolled.
#pragma once
#include "activations.h"

constexpr int WIDTHS[] = {AMAML_WIDTHS};
constexpr int LAYERS = sizeof(WIDTHS) / sizeof(int) - 1;
constexpr int SUPPORT = AMAML_SUPPORT, QUERY = AMAML_QUERY;  // points of a chunk of either set
using Sigma = AMAML_ACTIVATION;
