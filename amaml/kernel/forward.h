// The forward flow of a task: fixed or adaptive steps, the stability guard, and what is kept of the trajectory.
#pragma once
#include "task.h"

// Keeps u if a segment starts from it and its state is to be kept: all states while they take little memory, then about √N; with
// a limit, half of it.
template <class T> inline void Task<T>::offer() {
    if (!p.backward) return;
    if (is_controlled(p)) {
        if (segments != arrivals.last() && rounds - cuts.last() < SEGMENT) return;
        cuts.add(rounds);
    }
    kept.offer(segments++, u.data());
    while (kept.count() > most_at(kept.spacing())) kept.thin();
}
template <class T> inline void Task<T>::arrive(int64_t k) {
    boundaries.add(rounds), arrivals.add(segments);
    copy(P, u.data(), p.ends + (b * p.horizons + k) * P);
    if (!p.backward) return;
    T *jump = &jumps[k * P], *direct = p.gradients + b * P, loss = net.gradient(query, u.data(), jump);
    const T weight = T(p.weights[k]), rho = T(p.proximal_in_query ? p.proximal : 0);
    const double square = total(P, [&](int64_t i) { return double(u[i] - p.theta[i]) * (u[i] - p.theta[i]); });
    if (rho != 0) loss += T(0.5 * rho * square);
    each(P, [&](int64_t i) {
        const T proximal = rho * (u[i] - p.theta[i]);
        jump[i] = weight * (jump[i] + proximal);
        direct[i] -= weight * proximal;
    });
    if (p.proximal_in_query) by_proximal += 0.5 * weight * square;
    if (bad_loss.code == SUCCESS && !(finite(loss) && all_finite(jump))) bad_loss = {NON_FINITE, p.times[k]};
    put(p.losses + b * p.horizons + k, loss);
}
template <class T> inline bool Task<T>::all_finite(const T* v) const {
    return finite(total(P, [&](int64_t i) { return double(v[i]) - double(v[i]); }));
}
template <class T> inline void Task<T>::forward_fixed() {
    const int64_t all = fixed_steps();
    if (p.checkpoints < 0 && all * P * int64_t(sizeof(T)) > CHEAP_BYTES)
        kept.clear(larger<int64_t>(2, int64_t(round(sqrt(double(all))))));
    double start = 0;
    for (int64_t k = 0; k < p.horizons; start = p.times[k++]) {
        const T h = T(p.steps[k]);
        for (int64_t n = 0; n < p.counts[k]; ++n, ++rounds) {
            if (rounds % CHECK_EVERY == 0) check(k, start + n * p.steps[k]);
            offer();
            stages(u.data(), h, p.stages, nullptr);
            combine(u.data(), h, p.b, p.stages, u.data());
        }
        arrive(k);
    }
    check(p.horizons - 1, start);
}
template <class T> inline void Task<T>::check(int64_t k, double time) {
    const T h = T(p.steps[k]);
    if (!all_finite(u.data())) fail(Failure{NON_FINITE, time});
    if (!p.guard) return;
    if (rounds == 0) first_iterations(false);
    else lambda_now = iterate(u.data(), power.data(), false);
    if (!finite(lambda_now)) fail(Failure{NON_FINITE, time});
    lambda_most = larger(lambda_most, lambda_now);
    if (!(h * lambda_now <= p.stability_limit))
        fail(Failure{STABILITY_LIMIT, time, double(h * lambda_now), largest_step(lambda_now)});
}
template <class T> inline void Task<T>::forward_adaptive() {
    field(u.data(), slope.data());
    if (p.guard) first_iterations(true);
    if (watched()) kinks.start(u.data(), to_force());
    double h = first_step(), start = 0;
    for (int64_t k = 0; k < p.horizons; start = p.times[k++]) {
        h = integrate(start, p.times[k], h);
        arrive(k);
        const T* jump = &jumps[k * P];
        put(p.by_length + b * p.horizons + k, T(total(P, [&](int64_t i) { return double(slope[i]) * jump[i]; })));
    }
}
// Integrates u and its slope from start to end; returns the step that would be tried next.
template <class T> inline double Task<T>::integrate(double start, double end, double h) {
    double time = start;
    for (int64_t attempt = 0; attempt < p.max_steps; ++attempt) {
        const double left = end - time, longest = p.guard ? smaller(h, p.step_cap / lambda_now) : h;
        const double trial = left <= longest ? left : left < 2 * longest ? left / 2 : longest;
        const double ratio = try_step(T(trial));
        const bool small_error = ratio <= 1, good = small_error && stable(trial);
        if (!good && trial < SMALLEST_STEP * (end - start))
            fail(finite(ratio) ? Failure{STEP_UNDERFLOW, time, trial} : Failure{NON_FINITE, time});
        const double wish = SAFETY * pow(ratio, -1.0 / p.order);
        const double before = h;
        h = trial * smaller(is_nan(wish) ? SHRINK : within(wish, SHRINK, GROW), good ? GROW : SAFETY);
        if (good && trial < before) h = larger(h, before);  // a step shortened to meet the end says little about the next
        if (!good) { ++rejected, kinks.rejected(); continue; }
        if (watched()) kinks.accepted({u.data(), next.data(), states.data(), slopes.data(), end_slope.data(), trial, time}, to_force());
        offer();
        sizes.add(T(trial)), ++rounds;
        if (is_controlled(p)) starts.add(time);
        u.swap(next), slope.swap(end_slope);
        if (trial >= left) return h;
        time += trial;
    }
    fail(Failure{BUDGET_SPENT, time, NAN, double(p.max_steps)});
}
// Computes next and end_slope; returns the error divided by the tolerance.
template <class T> inline double Task<T>::try_step(T h) {
    stages(u.data(), h, p.stages, slope.data());
    combine(u.data(), h, p.b, p.stages, next.data());
    field(next.data(), end_slope.data());
    add_weighted(P, static_cast<const T*>(nullptr), h, p.error, p.stages, slopes.data(), cotangent.data());
    const T last = h * T(p.error[p.stages]);
    return over_tolerance([&](int64_t i) { return cotangent[i] + last * end_slope[i]; }, next.data());
}
// Whether a step of length h to `next` is stable. An unstable step keeps the old vector, but takes the new estimate of λmax.
template <class T> inline bool Task<T>::stable(double h) {
    if (!p.guard) return true;
    copy(P, power.data(), lambda.data());
    const T found = iterate(next.data(), lambda.data(), true);
    if (finite(found)) lambda_now = found;
    if (!(h * found <= END_SLACK * p.step_cap)) return false;
    power.swap(lambda);
    lambda_most = larger(lambda_most, lambda_now);
    return true;
}
// The first step, by Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
template <class T> inline double Task<T>::first_step() {
    const auto size = [&](auto v) { return over_tolerance(v, u.data()); };
    const double d0 = size([&](int64_t i) { return u[i]; }), d1 = size([&](int64_t i) { return slope[i]; });
    const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    fill(P, next.data(), [&](int64_t i) { return u[i] + T(h0) * slope[i]; });
    field(next.data(), end_slope.data());
    const double d2 = size([&](int64_t i) { return end_slope[i] - slope[i]; }) / h0, largest = larger(d1, d2);
    const double h1 = largest <= 1e-15 ? larger(1e-6, h0 * 1e-3) : pow(0.01 / largest, 1.0 / p.order);
    const double h = smaller(100 * h0, h1);
    return is_nan(h) ? 1e-6 : larger(h, SMALLEST_STEP * p.times[p.horizons - 1]);
}
