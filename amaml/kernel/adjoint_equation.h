// The adjoint equation of a task: λ and the integrals by the flow's own parameters, solved with error control along dense output of
// the trajectory.
#pragma once
#include "task.h"

template <class T> inline void Task<T>::begin_adjoint(int64_t k) {
    if (k + 1 == p.horizons) {
        fill(P + integrals(), y.data(), [](int64_t) { return T(0); });
        adjoint_steps = 0, gone[0] = gone[1] = gone[2] = 0;
        if (!p.guard) lambda_most = 0;
    }
    copy(P, lambda.data(), y.data());
    time = p.times[k], fresh = true;
}
template <class T> inline void Task<T>::end_adjoint() {
    copy(P, y.data(), lambda.data());
    const T* from = y.data() + P;
    if (p.proximal != 0) copy(P, from, p.through_theta + b * P), from += P;
    if (p.want_rates) copy(P, from, p.by_rates + b * P), from += P;
    if (p.want_proximal && time == 0) by_proximal += *from;
}
template <class T> inline void Task<T>::adjoint_along(int64_t segment, const T* from) {
    make_dense(segment, from);
    const double end = starts[begin_of(segment)], way = p.times[p.horizons - 1];
    if (fresh) {
        y_slope(segment, time, y.data(), slope_of(0));
        wish = first_adjoint_step(segment);
        fresh = false;
    }
    while (time > end) {
        if (adjoint_steps++ == MOST_ADJOINT_STEPS) fail(Failure{BUDGET_SPENT, time, NAN, double(MOST_ADJOINT_STEPS)});
        const double left = time - end, trial = left <= wish ? left : left < 2 * wish ? left / 2 : wish;
        const double ratio = try_adjoint(segment, trial), grow = SAFETY * pow(ratio, -1.0 / p.order);
        const bool good = ratio <= 1;
        if (!good && trial < SMALLEST_STEP * way)
            fail(finite(ratio) ? Failure{STEP_UNDERFLOW, time, trial} : Failure{NON_FINITE, time});
        const double next_wish = trial * smaller(is_nan(grow) ? SHRINK : within(grow, SHRINK, GROW), good ? GROW : SAFETY);
        wish = good && trial < wish ? larger(wish, next_wish) : next_wish;
        if (!good) continue;
        note_stiffness();
        add_lengths(gone);
        y.swap(y_next);
        copy(P + integrals(), static_cast<const T*>(slope_of(p.stages)), slope_of(0));
        time = trial >= left ? end : time - trial;
    }
}
// Recomputes the states, slopes and middles of the segment's steps from the state before it.
template <class T> inline void Task<T>::make_dense(int64_t segment, const T* from) {
    const int64_t first = begin_of(segment), count = end_of(segment) - first;
    copy(P, from, dense_states.data());
    field(from, dense_slopes.data());
    for (int64_t r = 0; r < count; ++r) {
        const T h = sizes[first + r], *u0 = &dense_states[r * P];
        T *u1 = &dense_states[(r + 1) * P], *f1 = &dense_slopes[(r + 1) * P];
        stages(u0, h, p.stages, &dense_slopes[r * P]);
        combine(u0, h, p.b, p.stages, u1);
        field(u1, f1);
        if (!p.midpoint) continue;
        T* middle = &dense_middles[r * P];
        combine(u0, h, p.midpoint, p.stages, middle);
        const T last = h * T(p.midpoint[p.stages]);
        fill(P, middle, [=](int64_t i) { return middle[i] + last * f1[i]; });
    }
}
// Writes u(t) to `at`: the quartic through a step's ends and middle (Shampine 1986), or the cubic Hermite interpolant.
template <class T> inline void Task<T>::interpolate(int64_t segment, double t) {
    const int64_t first = begin_of(segment), count = end_of(segment) - first;
    int64_t r = 0;
    while (r + 1 < count && starts[first + r + 1] <= t) ++r;
    const T h = sizes[first + r], x = T((t - starts[first + r]) / double(h));
    const T *u0 = &dense_states[r * P], *u1 = u0 + P, *s0 = &dense_slopes[r * P], *s1 = s0 + P;
    const T* middle = &dense_middles[r * P];
    fill(P, at.data(), [=, quartic = p.midpoint != nullptr](int64_t i) {
        const T d = u1[i] - u0[i], f0 = h * s0[i], f1 = h * s1[i];
        if (!quartic) return u0[i] + x * (f0 + x * ((3 * d - 2 * f0 - f1) + x * (f0 + f1 - 2 * d)));
        const T m = middle[i] - u0[i];
        return u0[i] + x * (f0 + x * ((f1 - 4 * f0 - 5 * d + 16 * m) +
               x * ((5 * f0 - 3 * f1 + 14 * d - 32 * m) + x * (2 * (f1 - f0) - 8 * d + 16 * m))));
    });
}
// The slope of y in reversed time, at t.
template <class T> inline void Task<T>::y_slope(int64_t segment, double t, const T* v, T* out) {
    interpolate(segment, t);
    T* more = out + P;
    const T rho = T(p.proximal), *alpha = p.rates;
    if (rho != 0) {
        fill(P, more, [=](int64_t i) { return rho * (alpha ? v[i] * alpha[i] : v[i]); });
        more += P;
    }
    if (p.want_rates) {
        force(at.data(), cotangent.data());
        fill(P, more, [&](int64_t i) { return -v[i] * cotangent[i]; });
        more += P;
    }
    if (p.want_proximal)
        put(more, T(-total(P, [&](int64_t i) { return double(v[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]); })));
    negative_vjp(at.data(), v, out, 0, p.want_rates);
    fill(P, out, [=](int64_t i) { return -out[i]; });
}
// Computes y_next and the slope there; returns the error divided by the tolerance.
template <class T> inline double Task<T>::try_adjoint(int64_t segment, double h) {
    const int64_t size = P + integrals();
    const double* row = p.a;
    const auto add = [&](const T* from, const double* c, int64_t count, T* out) {
        add_weighted(size, from, T(h), c, count, static_cast<const T*>(y_slopes.data()), out);
    };
    for (int64_t s = 1; s < p.stages; ++s) {
        row += s - 1;
        add(y.data(), row, s, y_next.data());
        double passed = 0;
        for (int64_t j = 0; j < s; ++j) passed += row[j];
        y_slope(segment, time - h * passed, y_next.data(), slope_of(s));
    }
    add(y.data(), p.b, p.stages, y_next.data());
    y_slope(segment, time - h, y_next.data(), slope_of(p.stages));
    add(nullptr, p.error, p.stages + 1, y_error.data());
    return adjoint_over_tolerance(y_error.data(), y_next.data());
}
template <class T> inline double Task<T>::norm(const T* v, int64_t n) {
    const T most = largest<T>(n, [&](int64_t i) { return absolute(v[i]); });
    const double unit = most > 0 ? double(most) : 1;
    return unit * sqrt(total(n, [&](int64_t i) { return double(v[i]) / unit * (double(v[i]) / unit); }));
}
// The error of a step from y to `end`, divided by the tolerance as in amaml/adjoint/equation.py; NaN if any entry is NaN.
template <class T> inline double Task<T>::adjoint_over_tolerance(const T* error, const T* end) {
    const double whole_error = total(P, [&](int64_t i) { return double(error[i]) - double(error[i]); });
    if (is_nan(whole_error)) return NAN;
    double squares = 0, worst = 0;
    units.clear();
    for (int64_t j = 0, from = 0; j < p.tensors; from += p.sizes[j++]) {
        units.add(larger(norm(&y[from], p.sizes[j]), norm(end + from, p.sizes[j])));
        squares += units.last() * units.last();
    }
    const double whole = sqrt(squares), share = LAMBDA_SHARE * p.rtol;
    const double rounding = ROUNDING * double(EPSILON<T>);
    for (int64_t j = 0, from = 0; j < p.tensors; from += p.sizes[j++]) {
        const double off = norm(error + from, p.sizes[j]);
        const double allowed = larger(share * larger(units[j], p.rtol * whole), rounding * whole);
        if (off != 0) worst = larger(worst, off / allowed);
    }
    double lengths[3] = {gone[0], gone[1], gone[2]};
    add_lengths(lengths, end);
    for_integrals([&](int64_t n, int64_t from, int64_t size) {
        const double off = norm(error + from, size), allowed = larger(share, rounding) * lengths[n];
        if (allowed > 0 && off != 0) worst = larger(worst, off / allowed);
    });
    return worst;
}
// Adds the norm of each integral's change from y to `end` (y_next unless given) to `lengths`.
template <class T> inline void Task<T>::add_lengths(double* lengths, const T* end) {
    if (!end) end = y_next.data();
    for_integrals([&](int64_t n, int64_t from, int64_t size) {
        lengths[n] += sqrt(total(size, [&](int64_t i) { const double way = end[from + i] - y[from + i]; return way * way; }));
    });
}
// Raises lambda_most to ‖dλ/ds‖/‖λ‖, which is a lower bound of λmax.
template <class T> inline void Task<T>::note_stiffness() {
    const auto size = [&](const T* v) {
        return sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
    };
    const double of_lambda = size(y.data());
    if (of_lambda > 0) lambda_most = larger(lambda_most, T(size(slope_of(0)) / of_lambda));
}
// The first step for y, as first_step.
template <class T> inline double Task<T>::first_adjoint_step(int64_t segment) {
    const int64_t size = P + integrals();
    const double d0 = adjoint_over_tolerance(y.data(), y.data()), d1 = adjoint_over_tolerance(slope_of(0), y.data());
    const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    fill(size, y_next.data(), [&, slopes = slope_of(0)](int64_t i) { return y[i] + T(h0) * slopes[i]; });
    y_slope(segment, time - h0, y_next.data(), slope_of(1));
    fill(size, y_error.data(), [now = slope_of(0), later = slope_of(1)](int64_t i) { return later[i] - now[i]; });
    const double d2 = adjoint_over_tolerance(y_error.data(), y.data()) / h0, largest = larger(d1, d2);
    const double h1 = largest <= 1e-15 ? larger(1e-6, h0 * 1e-3) : pow(0.01 / largest, 1.0 / p.order);
    const double h = smaller(100 * h0, h1);
    return is_nan(h) ? 1e-6 : larger(h, SMALLEST_STEP * p.times[p.horizons - 1]);
}
