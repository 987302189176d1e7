// What the kernel is compiled for: the network's widths, its activation, the points that are looked at together, and the kinds of solver
// and adjoint. All of them being known, every offset is a constant, short loops are unrolled, and what isn't needed is left out.
#pragma once
#include "activations.h"
#include "problem.h"

constexpr int WIDTHS[] = {AMAML_WIDTHS};
constexpr int LAYERS = sizeof(WIDTHS) / sizeof(int) - 1;
constexpr int SUPPORT = AMAML_SUPPORT, QUERY = AMAML_QUERY;  // points of a chunk of either set
using Sigma = AMAML_ACTIVATION;
template <class T> bool is_adaptive(const Problem<T>&) { return AMAML_ADAPTIVE; }
template <class T> bool is_controlled(const Problem<T>&) { return AMAML_CONTROLLED; }
