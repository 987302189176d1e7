// The constants that the kernel is compiled for: the network's widths and activation, the points in a chunk, and the kinds of
// solver and adjoint. So every offset is a constant, short loops are unrolled, and unused code is left out.
#pragma once
#include "activations.h"
#include "problem.h"

constexpr int WIDTHS[] = {AMAML_WIDTHS};
constexpr int LAYERS = sizeof(WIDTHS) / sizeof(int) - 1;
constexpr int SUPPORT = AMAML_SUPPORT, QUERY = AMAML_QUERY;  // points in a chunk of the support set and of the query set
using Sigma = AMAML_ACTIVATION;
template <class T> bool is_adaptive(const Problem<T>&) { return AMAML_ADAPTIVE; }
template <class T> bool is_controlled(const Problem<T>&) { return AMAML_CONTROLLED; }
