// Finds out whether a flow meets a kink of its support loss, where the adjoint equation doesn't hold. amaml/flow/kinks.py does
// the same for batches, and explains it.
#pragma once
#include "arithmetic.h"
#include "block.h"

// An accepted step with the states and slopes of its stages [stages, P]; the first slope is the one at `from`.
template <class T> struct Step {
    const T *from, *to, *states, *slopes, *end_slope;
    double h, time;
};

// Searches for jumps of the force along the flow of one task. Throws Failure where λ would jump by too much.
template <class T> class Kinks {
  public:
    Kinks(const Problem<T>& problem, Memory& memory, bool watched)
        : p(problem), P(problem.parameters), before(take<T>(memory, watched ? P : 0)), after(take<T>(memory, watched ? P : 0)),
          middle(take<T>(memory, watched ? P : 0)), beside(take<T>(memory, watched ? P : 0)),
          first(take<T>(memory, watched ? P : 0)), last(take<T>(memory, watched ? P : 0)), half(take<T>(memory, watched ? P : 0)) {}

    // Tests whether the flow starts in a kink, at u. force(at, out) writes −du/dt without the rates.
    template <class F> OUT_OF_LINE void start(const T* u, F force) {
        last_quotient = 0, was_rejected = false;
        const T unit = T(sqrt(double(P)));
        each(P, [&](int64_t i) {
            beside[i] = ulps(u, i) * p.power_start[i] * unit;
            before[i] = u[i] - beside[i], after[i] = u[i] + beside[i];
        });
        force(before.data(), first.data()), force(after.data(), last.data());
        refuse(jump(force), 0);
    }
    void rejected() { was_rejected = true; }
    // Searches the step if the slope changes much faster than over the step before, or if its first attempt was rejected.
    template <class F> OUT_OF_LINE void accepted(const Step<T>& step, F force) {
        const T* far = step.to;
        double change = distance(step.end_slope, step.slopes);
        for (int64_t s = 1; s < p.stages; ++s)
            if (const double of_stage = distance(step.slopes + s * P, step.slopes); of_stage > change)
                change = of_stage, far = step.states + s * P;
        const double way = step.h * sqrt(total(P, [&](int64_t i) { return double(step.slopes[i]) * step.slopes[i]; }));
        const double quotient = change > 0 ? smaller(change / way, double(LARGEST<T>)) : 0;
        const bool suspect = was_rejected || quotient > SPIKE * last_quotient;
        last_quotient = quotient, was_rejected = false;
        if (suspect) refuse(search(step.from, far, force), step.time);
    }

  private:
    // As in amaml/flow/kinks.py.
    static constexpr double LIMIT = 10, SPIKE = 2, LEFT = 1e-2, ULPS = 32, QUIET = 0.1;
    static constexpr int HALVINGS = 24;

    T ulps(const T* u, int64_t i) const { return T(ULPS) * EPSILON<T> * larger(absolute(u[i]), p.scales[i]); }
    OUT_OF_LINE double distance(const T* v, const T* w) const {
        return sqrt(total(P, [&](int64_t i) { return (double(v[i]) - w[i]) * (double(v[i]) - w[i]); }));
    }
    void refuse(double jump, double t) const {
        if (jump > LIMIT * p.rtol) fail(Failure{KINK, t, jump});
    }
    // The relative jump between u and `far`, 0 where there is none. Bisection keeps the half with the larger change of the force.
    template <class F> OUT_OF_LINE double search(const T* u, const T* far, F force) {
        copy(P, u, before.data()), copy(P, far, after.data());
        force(before.data(), first.data()), force(after.data(), last.data());
        const double change = distance(first.data(), last.data());
        for (int64_t n = 0; n < HALVINGS; ++n) {
            each(P, [&](int64_t i) { middle[i] = (before[i] + after[i]) / 2; });
            force(middle.data(), half.data());
            if (distance(half.data(), first.data()) >= distance(last.data(), half.data())) after.swap(middle), last.swap(half);
            else before.swap(middle), first.swap(half);
            if (!(distance(first.data(), last.data()) > LEFT * change)) return 0;
        }
        each(P, [&](int64_t i) {
            const T way = far[i] - u[i];
            beside[i] = way * T(ldexp(1.0, 10 - HALVINGS)) + (way < 0 ? -ulps(u, i) : ulps(u, i));
        });
        return jump(force);
    }
    // The jump between `before` and `after`, divided by the speed at which the flow crosses it; 0 if it is only rounding.
    template <class F> OUT_OF_LINE double jump(F force) {
        const auto change = [&](const Values<T>& at, T sign, const Values<T>& there) {
            each(P, [&](int64_t i) { middle[i] = at[i] + sign * beside[i]; });
            force(middle.data(), half.data());
            return distance(half.data(), there.data());
        };
        const double noise = larger(change(before, T(-1), first), change(after, T(1), last));
        const auto alpha = [&](int64_t i) { return double(p.rates ? p.rates[i] : T(1)); };
        const auto across = [&](int64_t i) { return double(last[i]) - first[i]; };
        const double size = distance(last.data(), first.data());
        const double slope_size = sqrt(total(P, [&](int64_t i) { return alpha(i) * across(i) * (alpha(i) * across(i)); }));
        const double speed = absolute(total(P, [&](int64_t i) { return alpha(i) * across(i) * first[i]; }));
        return noise < QUIET * size ? size * slope_size / speed : 0;
    }

    const Problem<T>& p;
    const int64_t P;
    Values<T> before, after, middle, beside, first, last, half;  // states near a kink, and the forces there
    double last_quotient = 0;                                    // how fast the slope changed over the last step
    bool was_rejected = false;
};
