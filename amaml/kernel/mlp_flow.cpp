// The whole meta-gradient of one task after another: forward flow with step control and stability guard, query loss,
// discrete or interpolated adjoint with checkpointing; or the forward flow alone. It does what amaml/flow and amaml/adjoint do for
// batches of any losses, for fully connected networks and regression losses, with a task's data in the processor's cache.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <system_error>
#include <thread>

#include "checkpointing.h"
#include "kinks.h"
#include "network.h"
#include "problem.h"

namespace {

// As in amaml/flow/control.py, guard.py, solve.py, amaml/adjoint/equation.py and interpolated.py.
constexpr double SAFETY = 0.9, SHARE = 0.1, SHRINK = 0.2, GROW = 10, SMALLEST_STEP = 1e-12, END_SLACK = 1.1;
constexpr double FRESH = 0.1, GROWTH_OF_FLOW = 2, GROWTH_OF_FIXED_STEPS = 100;
constexpr double LAMBDA_SHARE = 0.5, ROUNDING = 4;
constexpr int64_t FIRST_ITERATIONS = 12, CHECK_EVERY = 16, SEGMENT = 16, MOST_ADJOINT_STEPS = 1000000;
constexpr size_t CHEAP_BYTES = 1 << 20;  // of states of one trajectory, kept without thinning them
constexpr size_t SLOT_BYTES = 1 << 18;   // of activations worth remembering for each stage

template <class T> class Task {
  public:
    Task(const Problem<T>& problem)
        : p(problem), P(problem.parameters), support(p.support_points, p.widths[0], p.widths[p.layers]),
          query(p.query_points, p.widths[0], p.widths[p.layers]),
          net(p.layers, p.widths, Activation(p.activation), std::max(support.length, query.length), slots()),
          u(P), next(P), slope(P), end_slope(P), lambda(P), scratch(P), seed(P), power(P), jumps(p.horizons * P),
          states(p.stages * P), slopes(p.stages * P), kinks(p) {
        if (p.rates)
            for (int64_t i = 0; i < P; ++i) root_rates.push_back(std::sqrt(p.rates[i]));
    }

    void solve(int64_t task) {
        b = task;
        support.fill(p.support_x, p.support_y, b);
        if (p.backward) query.fill(p.query_x, p.query_y, b);
        kept.clear(), sizes.clear(), starts.clear(), cuts.clear(), boundaries.assign(1, 0), arrivals.assign(1, 0);
        spacing = 1, rounds = 0;
        by_proximal = 0, growth = 0, misjudged = {SUCCESS, 0};
        p.lambda_max[b] = NAN;
        std::copy_n(p.theta, P, u.data());
        p.adaptive ? forward_adaptive() : forward_fixed();
        if (misjudged.code != SUCCESS) throw misjudged;
        if (p.backward) backward();
    }

  private:
    // ---- the flow f(u) = −α∘(∇L(u) + ρ(u−θ)), its Jacobian's products, and what they cost
    void force(const T* at, T* out, int64_t slot = 0) {
        net.gradient(support, at, out, slot);
        ++p.gradient_count[b];
        const T rho = T(p.proximal);
        if (rho != 0) for (int64_t i = 0; i < P; ++i) out[i] += rho * (at[i] - p.theta[i]);
    }
    void field(const T* at, T* out, int64_t slot = 0) {
        force(at, out, slot);
        for (int64_t i = 0; i < P; ++i) out[i] *= p.rates ? -p.rates[i] : T(-1);
    }
    void hessian(const T* at, const T* v, T* out, int64_t slot, bool known) {
        net.hvp(support, at, v, out, slot, known);
        ++p.hvp_count[b];
        const T rho = T(p.proximal);
        if (rho != 0) for (int64_t i = 0; i < P; ++i) out[i] += rho * v[i];
    }
    void transposed(const T* at, const T* v, T* out, int64_t slot, bool known) {
        const T* scaled = v;
        if (p.rates) {
            for (int64_t i = 0; i < P; ++i) scratch[i] = v[i] * p.rates[i];
            scaled = scratch.data();
        }
        hessian(at, scaled, out, slot, known);
        for (int64_t i = 0; i < P; ++i) out[i] = -out[i];
    }

    // ---- the guard: power iteration on √α(∇²L + ρ)√α at `at`, whose activations slot 0 may hold already
    T look(const T* at, T* vector, bool known) {
        const double along = total(P, [&](int64_t i) { return double(vector[i]) * p.power_start[i]; });
        const T unit = T(1 / std::sqrt(1 + 2 * FRESH * along + FRESH * FRESH)), fresh = T(FRESH) * unit;
        for (int64_t i = 0; i < P; ++i) {
            const T mixed = unit * vector[i] + fresh * p.power_start[i];
            scratch[i] = p.rates ? mixed * root_rates[i] : mixed;
        }
        hessian(at, scratch.data(), seed.data(), 0, known);
        if (p.rates) for (int64_t i = 0; i < P; ++i) seed[i] *= root_rates[i];
        const T size = T(std::sqrt(total(P, [&](int64_t i) { return double(seed[i]) * seed[i]; })));
        if (size != 0) for (int64_t i = 0; i < P; ++i) vector[i] = seed[i] / size;
        return size;
    }
    void first_looks(bool known) {
        std::copy_n(p.power_start, P, power.data());
        for (int64_t n = 0; n < FIRST_ITERATIONS; ++n) lambda_now = look(u.data(), power.data(), known || n);
        if (!std::isfinite(lambda_now)) throw Failure{NON_FINITE, 0};
        p.lambda_max[b] = lambda_now;
    }

    // ---- steps
    const T* state(int64_t stage, const T* from) const { return stage ? &states[stage * P] : from; }
    // out = from + h·Σ_j c_j slopes_j, j < count
    void combine(const T* from, T h, const double* c, int64_t count, T* out) const {
        if (out != from) std::copy_n(from, P, out);
        for (int64_t j = 0; j < count; ++j)
            if (const T weight = h * T(c[j]); c[j] != 0)
                for (int64_t i = 0; i < P; ++i) out[i] += weight * slopes[j * P + i];
    }
    // Stage states (the first is `from` itself) and the slopes of the first `count`; a stage's activations in its slot.
    void stages(const T* from, T h, int64_t count, const T* first) {
        const double* row = p.a;
        for (int64_t s = 0; s < p.stages; row += s++) {
            if (s) combine(from, h, row, s, &states[s * P]);
            if (s || !first) { if (s < count) field(state(s, from), &slopes[s * P], slot(s)); }
            else std::copy_n(first, P, slopes.data());
        }
    }
    // The steps of a segment: one where they are reversed one by one, else those up to the next cut.
    int64_t end_of(int64_t segment) const { return segment + 1 < int64_t(cuts.size()) ? cuts[segment + 1] : rounds; }
    void advance(int64_t segment, T* at) {
        for (int64_t number = cuts[segment]; number < end_of(segment); ++number) {
            const T h = step_size(number);
            stages(at, h, p.stages, nullptr);
            combine(at, h, p.b, p.stages, at);
        }
    }
    T step_size(int64_t number) const {
        if (p.adaptive) return sizes[number];
        return T(p.steps[std::upper_bound(boundaries.begin(), boundaries.end() - 1, number) - boundaries.begin() - 1]);
    }
    int64_t slots() const {
        int64_t width = 0;
        for (int64_t l = 1; l <= p.layers; ++l) width += p.widths[l];
        return support.chunks == 1 && width * support.length * sizeof(T) <= SLOT_BYTES ? p.stages : 1;
    }
    int64_t slot(int64_t stage) const { return net.slots() > 1 ? stage : 0; }

    // ---- forward
    // Keeps u, where a segment starts, if it is due: all while that is cheap, then about √N; or half a limit.
    void offer() {
        if (!p.backward) return;
        const bool first = int64_t(cuts.size()) == arrivals.back();
        if (p.controlled && !first && rounds - cuts.back() < SEGMENT) return;
        const int64_t number = int64_t(cuts.size());
        cuts.push_back(rounds);
        if (number % spacing == 0) kept.emplace(number, u);
        const int64_t cheap = std::max<int64_t>(2, CHEAP_BYTES / (P * sizeof(T)));
        const int64_t limit = std::max<int64_t>(1, (p.checkpoints - 1) / 2);  // the rest is for the way back
        while (int64_t(kept.size()) > (p.checkpoints >= 0 ? limit : spacing == 1 ? cheap : 2 * spacing)) {
            spacing *= 2;
            for (auto at = kept.begin(); at != kept.end();) at = at->first % spacing ? kept.erase(at) : std::next(at);
        }
    }
    void arrive(int64_t k) {
        boundaries.push_back(rounds), arrivals.push_back(int64_t(cuts.size()));
        std::copy_n(u.data(), P, p.ends + (b * p.horizons + k) * P);
        if (!p.backward) return;
        T *jump = &jumps[k * P], loss = net.gradient(query, u.data(), jump), *direct = p.gradients + b * P;
        const T weight = T(p.weights[k]), rho = T(p.proximal_in_query ? p.proximal : 0);
        const double far = total(P, [&](int64_t i) { return double(u[i] - p.theta[i]) * (u[i] - p.theta[i]); });
        if (rho != 0) loss += T(0.5 * rho * far);
        for (int64_t i = 0; i < P; ++i) {
            const T pull = rho * (u[i] - p.theta[i]);
            jump[i] = weight * (jump[i] + pull);
            direct[i] -= weight * pull;
        }
        if (p.proximal_in_query) by_proximal += 0.5 * weight * far;
        if (misjudged.code == SUCCESS && !(std::isfinite(loss) && finite(jump))) misjudged = {NON_FINITE, p.times[k]};
        p.losses[b * p.horizons + k] = loss;
    }
    bool finite(const T* v) const {
        return std::isfinite(total(P, [&](int64_t i) { return double(v[i]) - double(v[i]); }));
    }

    void forward_fixed() {
        const int64_t all = std::accumulate(p.counts, p.counts + p.horizons, int64_t(0));
        if (p.checkpoints < 0 && all * P * sizeof(T) > CHEAP_BYTES)
            spacing = std::max<int64_t>(2, std::llround(std::sqrt(double(all))));
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
        p.accepted[b] = rounds;
        check(p.horizons - 1, start);
    }
    void check(int64_t k, double time) {
        const T h = T(p.steps[k]);
        if (!finite(u.data())) throw Failure{NON_FINITE, time};
        if (!p.guard) return;
        if (rounds == 0) first_looks(false);
        else lambda_now = look(u.data(), power.data(), false);
        if (!std::isfinite(lambda_now)) throw Failure{NON_FINITE, time};
        p.lambda_max[b] = std::max(p.lambda_max[b], lambda_now);
        if (!(h * lambda_now <= p.stability_limit))
            throw Failure{STABILITY_LIMIT, time, double(h * lambda_now), largest_step(lambda_now)};
    }
    // The largest step option that leaves nine tenths of the limit, as equal steps of every interval between horizons.
    double largest_step(double lambda) const {
        double largest = INFINITY;
        for (int64_t k = 0; k < p.horizons; ++k) {
            const double interval = p.counts[k] * p.steps[k];
            largest = std::min(largest, interval / std::ceil(interval * lambda / (0.9 * p.stability_limit)));
        }
        return largest;
    }

    void forward_adaptive() {
        field(u.data(), slope.data());
        if (p.guard) first_looks(true);
        if (watched()) kinks.start(u.data(), to_force());
        double h = first_step(), start = 0;
        for (int64_t k = 0; k < p.horizons; start = p.times[k++]) {
            h = integrate(start, p.times[k], h);
            arrive(k);
            const T* jump = &jumps[k * P];
            p.by_length[b * p.horizons + k] = T(total(P, [&](int64_t i) { return double(slope[i]) * jump[i]; }));
        }
        p.accepted[b] = rounds;
    }
    // Carries u and its slope from start to end; returns the step that would be tried next.
    double integrate(double start, double end, double h) {
        double time = start;
        for (int64_t attempt = 0; attempt < p.max_steps; ++attempt) {
            const double left = end - time, longest = p.guard ? std::min(h, p.step_cap / lambda_now) : h;
            const double trial = left <= longest ? left : left < 2 * longest ? left / 2 : longest;
            const double ratio = try_step(T(trial));
            const bool small_error = ratio <= 1, good = small_error && stable(trial);
            if (!good && trial < SMALLEST_STEP * (end - start))
                throw std::isfinite(ratio) ? Failure{STEP_UNDERFLOW, time, trial} : Failure{NON_FINITE, time};
            const double wish = SAFETY * std::pow(ratio, -1.0 / p.order);
            const double before = h;
            h = trial * std::min(std::isnan(wish) ? SHRINK : std::clamp(wish, SHRINK, GROW), good ? GROW : SAFETY);
            if (good && trial < before) h = std::max(h, before);  // the end, which cut it short, says little about the next
            if (!good) { ++p.rejected[b], kinks.rejected(); continue; }
            if (watched()) kinks.accepted({u.data(), next.data(), states.data(), slopes.data(), end_slope.data(), trial, time}, to_force());
            offer();
            sizes.push_back(T(trial)), starts.push_back(time), ++rounds;
            u.swap(next), slope.swap(end_slope);
            if (trial >= left) return h;
            time += trial;
        }
        throw Failure{BUDGET_SPENT, time, NAN, double(p.max_steps)};
    }
    // Fills next and end_slope; returns the error over tolerance.
    double try_step(T h) {
        stages(u.data(), h, p.stages, slope.data());
        combine(u.data(), h, p.b, p.stages, next.data());
        field(next.data(), end_slope.data());
        std::fill_n(seed.data(), P, T(0));
        combine(seed.data(), h, p.error, p.stages, seed.data());
        const T last = h * T(p.error[p.stages]);
        return over_tolerance([&](int64_t i) { return seed[i] + last * end_slope[i]; }, next.data());
    }
    // The largest entry of an error of u, on the way to `end`, over its share of the tolerance; NaN if any is NaN.
    template <class F> double over_tolerance(F error, const T* end) {
        const T rtol = T(SHARE * p.rtol), atol = T(SHARE * p.atol), rounding = std::numeric_limits<T>::epsilon();
        T largest = 0;
        for (int64_t i = 0; i < P; ++i) {
            const T size = std::max(std::abs(u[i]), std::abs(end[i])), off = std::abs(T(error(i)));
            const T over = off == 0 ? 0 : off / std::max(rtol * size + atol * p.scales[i], rounding * size);
            if (!(over <= largest)) largest = over;
            if (std::isnan(over)) return NAN;
        }
        return largest;
    }
    // Whether a step that ends at `next` may stand. One that may not keeps its vector and learns how stiff it gets.
    bool stable(double h) {
        if (!p.guard) return true;
        std::copy_n(power.data(), P, lambda.data());
        const T found = look(next.data(), lambda.data(), true);
        if (std::isfinite(found)) lambda_now = found;
        if (!(h * found <= END_SLACK * p.step_cap)) return false;
        power.swap(lambda);
        p.lambda_max[b] = std::max(p.lambda_max[b], lambda_now);
        return true;
    }
    // Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
    double first_step() {
        const auto size = [&](auto v) { return over_tolerance(v, u.data()); };
        const double d0 = size([&](int64_t i) { return u[i]; }), d1 = size([&](int64_t i) { return slope[i]; });
        const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        for (int64_t i = 0; i < P; ++i) next[i] = u[i] + T(h0) * slope[i];
        field(next.data(), end_slope.data());
        const double d2 = size([&](int64_t i) { return end_slope[i] - slope[i]; }) / h0, largest = std::max(d1, d2);
        const double h1 = largest <= 1e-15 ? std::max(1e-6, h0 * 1e-3) : std::pow(0.01 / largest, 1.0 / p.order);
        const double h = std::min(100 * h0, h1);
        return std::isnan(h) ? 1e-6 : std::max(h, SMALLEST_STEP * p.times[p.horizons - 1]);
    }

    // ---- kinks: relu alone has them, and the adjoint equation alone minds
    bool watched() const { return p.controlled && p.backward && Activation(p.activation) == Activation::relu; }
    auto to_force() { return [this](const T* at, T* out) { force(at, out); }; }

    // ---- backward
    void backward() {
        std::fill(lambda.begin(), lambda.end(), T(0));
        for (int64_t k = p.horizons - 1; k >= 0; --k) {
            for (int64_t i = 0; i < P; ++i) lambda[i] += jumps[k * P + i];
            by_length = 0;
            if (p.controlled) begin_adjoint(k);
            back_to(arrivals[k], arrivals[k + 1]);
            if (p.controlled) end_adjoint();
            if (!p.adaptive && p.want_length) p.by_length[b * p.horizons + k] = T(by_length);
        }
        if (p.want_proximal) p.by_proximal[b] = T(by_proximal);
        T* out = p.gradients + b * P;
        for (int64_t i = 0; i < P; ++i) out[i] += lambda[i] + p.through_theta[b * P + i];
        if (!finite(out)) throw Failure{NON_FINITE, 0};
    }
    // Reverses the segments end − 1 … start, from the kept states.
    void back_to(int64_t start, int64_t end) {
        while (end > start) {
            const auto at = std::prev(kept.lower_bound(end));
            const int64_t number = at->first, first = std::max(number, start);
            Values<T> state = at->second;
            for (int64_t n = number; n < first; ++n) advance(n, state.data());
            if (p.checkpoints < 0) {
                std::vector<Values<T>> between(1, state);
                for (int64_t n = first; n < end - 1; ++n) {
                    between.push_back(between.back());
                    advance(n, between.back().data());
                }
                for (int64_t n = end - 1; n >= first; --n) reverse(n, between[n - first].data());
            } else {
                back(first, end, state, std::max<int64_t>(0, p.checkpoints - 1 - int64_t(kept.size())));
            }
            if (number >= start && number > 0) kept.erase(at);
            end = first;
        }
    }
    // The same from the state before segment `start`, keeping `spare` states more (Griewank & Walther 2000, revolve).
    void back(int64_t start, int64_t end, const Values<T>& state, int64_t spare) {
        const int64_t middle = end - start > 1 && spare ? start + split(end - start, spare + 1) : end;
        for (int64_t n = middle - 1; middle == end && n >= start; --n) {
            Values<T> carried = state;
            for (int64_t m = start; m < n; ++m) advance(m, carried.data());
            reverse(n, carried.data());
        }
        if (middle == end) return;
        {
            Values<T> carried = state;
            for (int64_t m = start; m < middle; ++m) advance(m, carried.data());
            back(middle, end, carried, spare - 1);
        }
        back(start, middle, state, spare);
    }
    // λ before a segment from λ after it; `from` is the state before it.
    void reverse(int64_t segment, const T* from) {
        if (p.controlled) adjoint_along(segment, from);
        else reverse_step(cuts[segment], from);
    }
    // The same for a step, by the transpose of the step's derivative.
    void reverse_step(int64_t number, const T* from) {
        const T h = step_size(number);
        stages(from, h, p.stages - 1, nullptr);
        std::copy_n(lambda.data(), P, next.data());
        for (int64_t s = p.stages - 1; s >= 0; --s) {
            for (int64_t i = 0; i < P; ++i) seed[i] = T(p.b[s]) * lambda[i];
            for (int64_t j = s + 1; j < p.stages; ++j)
                if (const T a = T(p.a[j * (j - 1) / 2 + s]); a != 0)
                    for (int64_t i = 0; i < P; ++i) seed[i] += a * slopes[j * P + i];
            for (int64_t i = 0; i < P; ++i) seed[i] *= h;
            bool known = net.slots() > 1 && s + 1 < p.stages;
            known |= visit(state(s, from), slot(s));
            transposed(state(s, from), seed.data(), &slopes[s * P], slot(s), known);
            if (!s && p.guard) watch(number, h);
            for (int64_t i = 0; i < P; ++i) next[i] += slopes[s * P + i];
        }
        lambda.swap(next);
    }
    // λ turns into the direction that blows up: as amaml.flow.guard.Lookout, after the first stage of a step back.
    void watch(int64_t number, T h) {
        const auto size = [&](const T* v) {
            return std::sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
        };
        const double before = size(seed.data()), product = h * size(slopes.data()) / before;
        if (!(before > std::sqrt(double(std::numeric_limits<T>::min())) && product > p.stability_limit)) return;
        growth += (p.stages + 1) * std::log(product / p.stability_limit);
        if (growth <= std::log(p.adaptive ? GROWTH_OF_FLOW : GROWTH_OF_FIXED_STEPS)) return;
        double time = 0;
        for (int64_t n = 0; n < number; ++n) time += step_size(n);
        throw Failure{STABILITY_LIMIT, time, product, p.adaptive ? NAN : largest_step(product / h)};
    }
    // What the field's own parameters see of a stage with weighted adjoint `seed`; whether that took the force.
    bool visit(const T* at, int64_t slot) {
        const T rho = T(p.proximal), *alpha = p.rates;
        T* through = p.through_theta + b * P;
        if (rho != 0) for (int64_t i = 0; i < P; ++i) through[i] += rho * (alpha ? seed[i] * alpha[i] : seed[i]);
        if (p.want_proximal)
            by_proximal -= total(P, [&](int64_t i) {
                return double(seed[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]);
            });
        if (!p.want_rates && (p.adaptive || !p.want_length)) return false;
        force(at, scratch.data(), slot);
        if (p.want_rates) for (int64_t i = 0; i < P; ++i) p.by_rates[b * P + i] -= seed[i] * scratch[i];
        by_length -= total(P, [&](int64_t i) { return double(seed[i]) * (alpha ? alpha[i] : T(1)) * scratch[i]; });
        return true;
    }

    // ---- the adjoint equation: λ and the integrals beside it as one vector y, solved from the segment's end to its start
    int64_t integrals() const { return (p.proximal != 0 ? P : 0) + (p.want_rates ? P : 0) + (p.want_proximal ? 1 : 0); }
    T* slope_of(int64_t stage) { return &y_slopes[stage * int64_t(y.size())]; }
    void begin_adjoint(int64_t k) {
        const int64_t size = P + integrals();
        if (k + 1 == p.horizons) {
            y.assign(size, 0), y_next.assign(size, 0), y_error.assign(size, 0);
            y_slopes.assign((p.stages + 1) * size, 0), at.resize(P);
            adjoint_steps = 0, std::fill_n(gone, 3, 0.0);
            if (!p.guard) p.lambda_max[b] = 0;
        }
        std::copy_n(lambda.data(), P, y.data());
        time = p.times[k], fresh = true;
    }
    void end_adjoint() {
        std::copy_n(y.data(), P, lambda.data());
        const T* from = y.data() + P;
        if (p.proximal != 0) std::copy_n(from, P, p.through_theta + b * P), from += P;
        if (p.want_rates) std::copy_n(from, P, p.by_rates + b * P), from += P;
        if (p.want_proximal && time == 0) by_proximal += *from;
    }
    void adjoint_along(int64_t segment, const T* from) {
        make_dense(segment, from);
        const double end = starts[cuts[segment]], way = p.times[p.horizons - 1];
        if (fresh) {
            y_slope(segment, time, y.data(), slope_of(0));
            wish = first_adjoint_step(segment);
            fresh = false;
        }
        while (time > end) {
            if (adjoint_steps++ == MOST_ADJOINT_STEPS) throw Failure{BUDGET_SPENT, time, NAN, double(MOST_ADJOINT_STEPS)};
            const double left = time - end, trial = left <= wish ? left : left < 2 * wish ? left / 2 : wish;
            const double ratio = try_adjoint(segment, trial), grow = SAFETY * std::pow(ratio, -1.0 / p.order);
            const bool good = ratio <= 1;
            if (!good && trial < SMALLEST_STEP * way)
                throw std::isfinite(ratio) ? Failure{STEP_UNDERFLOW, time, trial} : Failure{NON_FINITE, time};
            const double next_wish = trial * std::min(std::isnan(grow) ? SHRINK : std::clamp(grow, SHRINK, GROW), good ? GROW : SAFETY);
            wish = good && trial < wish ? std::max(wish, next_wish) : next_wish;
            if (!good) continue;
            note_stiffness();
            add_lengths(gone);
            y.swap(y_next);
            std::copy_n(slope_of(p.stages), int64_t(y.size()), slope_of(0));
            time = trial >= left ? end : time - trial;
        }
    }
    // The segment's states, slopes and middles of steps, made again from the state before it.
    void make_dense(int64_t segment, const T* from) {
        const int64_t first = cuts[segment], count = end_of(segment) - first;
        dense_states.resize((SEGMENT + 1) * P), dense_slopes.resize((SEGMENT + 1) * P), dense_middles.resize(SEGMENT * P);
        std::copy_n(from, P, dense_states.data());
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
            for (int64_t i = 0; i < P; ++i) middle[i] += last * f1[i];
        }
    }
    // u at t into `at`: quartic through a step's ends and middle (Shampine 1986), or the cubic of Hermite.
    void interpolate(int64_t segment, double t) {
        const int64_t first = cuts[segment], count = end_of(segment) - first;
        const auto after = std::upper_bound(starts.begin() + first, starts.begin() + first + count, t);
        const int64_t r = std::max<int64_t>(0, after - (starts.begin() + first) - 1);
        const T h = sizes[first + r], x = T((t - starts[first + r]) / double(h));
        const T *u0 = &dense_states[r * P], *u1 = u0 + P, *s0 = &dense_slopes[r * P], *s1 = s0 + P;
        const T* middle = &dense_middles[r * P];
        for (int64_t i = 0; i < P; ++i) {
            const T d = u1[i] - u0[i], f0 = h * s0[i], f1 = h * s1[i];
            if (!p.midpoint) {
                at[i] = u0[i] + x * (f0 + x * ((3 * d - 2 * f0 - f1) + x * (f0 + f1 - 2 * d)));
                continue;
            }
            const T m = middle[i] - u0[i];
            at[i] = u0[i] + x * (f0 + x * ((f1 - 4 * f0 - 5 * d + 16 * m) +
                    x * ((5 * f0 - 3 * f1 + 14 * d - 32 * m) + x * (2 * (f1 - f0) - 8 * d + 16 * m))));
        }
    }
    // The slope of y in reversed time, at t.
    void y_slope(int64_t segment, double t, const T* v, T* out) {
        interpolate(segment, t);
        T* more = out + P;
        const T rho = T(p.proximal), *alpha = p.rates;
        if (rho != 0) {
            for (int64_t i = 0; i < P; ++i) more[i] = rho * (alpha ? v[i] * alpha[i] : v[i]);
            more += P;
        }
        if (p.want_rates) {
            force(at.data(), seed.data());
            for (int64_t i = 0; i < P; ++i) more[i] = -v[i] * seed[i];
            more += P;
        }
        if (p.want_proximal)
            *more = T(-total(P, [&](int64_t i) { return double(v[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]); }));
        transposed(at.data(), v, out, 0, p.want_rates);
    }
    // Fills y_next and the slope there; returns the error over tolerance.
    double try_adjoint(int64_t segment, double h) {
        const int64_t size = int64_t(y.size());
        const double* row = p.a;
        const auto add = [&](const double* c, int64_t count, T* out) {
            for (int64_t j = 0; j < count; ++j)
                if (const T weight = T(h * c[j]); c[j] != 0)
                    for (int64_t i = 0; i < size; ++i) out[i] += weight * slope_of(j)[i];
        };
        for (int64_t s = 1; s < p.stages; ++s) {
            row += s - 1;
            std::copy_n(y.data(), size, y_next.data());
            add(row, s, y_next.data());
            y_slope(segment, time - h * std::accumulate(row, row + s, 0.0), y_next.data(), slope_of(s));
        }
        std::copy_n(y.data(), size, y_next.data());
        add(p.b, p.stages, y_next.data());
        y_slope(segment, time - h, y_next.data(), slope_of(p.stages));
        std::fill(y_error.begin(), y_error.end(), T(0));
        add(p.error, p.stages + 1, y_error.data());
        return adjoint_over_tolerance(y_error.data(), y_next.data());
    }
    static double norm(const T* v, int64_t n) {
        T largest = 0;
        for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(v[i]));
        const double unit = largest > 0 ? double(largest) : 1;
        return unit * std::sqrt(total(n, [&](int64_t i) { return double(v[i]) / unit * (double(v[i]) / unit); }));
    }
    // An error on the way from y to `end` in units of what one step may have: see amaml/adjoint/equation.py. NaN if any is NaN.
    double adjoint_over_tolerance(const T* error, const T* end) {
        const double whole_error = total(P, [&](int64_t i) { return double(error[i]) - double(error[i]); });
        if (std::isnan(whole_error)) return NAN;
        double squares = 0, worst = 0;
        units.clear();
        for (int64_t j = 0, from = 0; j < p.tensors; from += p.sizes[j++]) {
            units.push_back(std::max(norm(&y[from], p.sizes[j]), norm(end + from, p.sizes[j])));
            squares += units.back() * units.back();
        }
        const double whole = std::sqrt(squares), share = LAMBDA_SHARE * p.rtol;
        const double rounding = ROUNDING * double(std::numeric_limits<T>::epsilon());
        for (int64_t j = 0, from = 0; j < p.tensors; from += p.sizes[j++]) {
            const double off = norm(error + from, p.sizes[j]);
            const double allowed = std::max(share * std::max(units[j], p.rtol * whole), rounding * whole);
            if (off != 0) worst = std::max(worst, off / allowed);
        }
        double lengths[3] = {gone[0], gone[1], gone[2]};
        add_lengths(lengths, end);
        for_integrals([&](int64_t n, int64_t from, int64_t size) {
            const double off = norm(error + from, size), allowed = std::max(share, rounding) * lengths[n];
            if (allowed > 0 && off != 0) worst = std::max(worst, off / allowed);
        });
        return worst;
    }
    template <class F> void for_integrals(F run) {
        int64_t from = P;
        if (p.proximal != 0) run(0, from, P), from += P;
        if (p.want_rates) run(1, from, P), from += P;
        if (p.want_proximal) run(2, from, 1);
    }
    // Adds how far each integral goes from y to `end` (y_next unless given).
    void add_lengths(double* lengths, const T* end = nullptr) {
        if (!end) end = y_next.data();
        for_integrals([&](int64_t n, int64_t from, int64_t size) {
            lengths[n] += std::sqrt(total(size, [&](int64_t i) { const double way = end[from + i] - y[from + i]; return way * way; }));
        });
    }
    // λmax from below, by how fast λ changes along itself.
    void note_stiffness() {
        const auto size = [&](const T* v) {
            return std::sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
        };
        const double of_lambda = size(y.data());
        if (of_lambda > 0) p.lambda_max[b] = std::max(p.lambda_max[b], T(size(slope_of(0)) / of_lambda));
    }
    // As first_step, for y.
    double first_adjoint_step(int64_t segment) {
        const int64_t size = int64_t(y.size());
        const double d0 = adjoint_over_tolerance(y.data(), y.data()), d1 = adjoint_over_tolerance(slope_of(0), y.data());
        const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        for (int64_t i = 0; i < size; ++i) y_next[i] = y[i] + T(h0) * slope_of(0)[i];
        y_slope(segment, time - h0, y_next.data(), slope_of(1));
        for (int64_t i = 0; i < size; ++i) y_error[i] = slope_of(1)[i] - slope_of(0)[i];
        const double d2 = adjoint_over_tolerance(y_error.data(), y.data()) / h0, largest = std::max(d1, d2);
        const double h1 = largest <= 1e-15 ? std::max(1e-6, h0 * 1e-3) : std::pow(0.01 / largest, 1.0 / p.order);
        const double h = std::min(100 * h0, h1);
        return std::isnan(h) ? 1e-6 : std::max(h, SMALLEST_STEP * p.times[p.horizons - 1]);
    }

    std::vector<double> units;  // of λ's tensors
    const Problem<T>& p;
    const int64_t P;
    int64_t b = 0;
    Points<T> support, query;
    Network<T> net;
    Values<T> u, next, slope, end_slope, lambda, scratch, seed, power, jumps, states, slopes, root_rates;
    std::map<int64_t, Values<T>> kept;  // states by the number of the step that starts from them
    Values<T> sizes;                    // of the accepted adaptive steps
    Values<double> starts;              // and when they begin
    Values<int64_t> cuts;               // number of the step at which each segment begins
    Values<int64_t> boundaries;         // steps up to each horizon, 0 first
    Values<int64_t> arrivals;           // segments up to each horizon, 0 first
    Values<T> dense_states, dense_slopes, dense_middles;         // of a segment's steps
    Values<T> y, y_next, y_error, y_slopes, at;                  // of the adjoint equation
    double time = 0, wish = 0, gone[3] = {};                     // t, the next step, how far each integral has gone
    bool fresh = false;                                          // whether slope and step are to be found anew
    Kinks<T> kinks;
    int64_t adjoint_steps = 0;
    int64_t spacing = 1, rounds = 0;
    T lambda_now = 0;
    Failure misjudged{SUCCESS, 0};  // the first horizon whose loss isn't finite
    double by_proximal = 0, by_length = 0, growth = 0;
};

// Whether as many parameters were handed over as the widths say, and an activation that there is.
template <class T> bool consistent(const Problem<T>& p) {
    int64_t parameters = 0;
    for (int64_t l = 0; l < p.layers; ++l) parameters += (p.widths[l] + 1) * p.widths[l + 1];
    if (std::accumulate(p.sizes, p.sizes + p.tensors, int64_t(0)) != parameters) return false;
    return p.layers > 0 && parameters == p.parameters && 0 <= p.activation && p.activation <= int64_t(Activation::relu);
}

// Tasks are independent, so how many threads take them in which order changes nothing. Returns 1 where memory ran out, 2 where
// the sizes don't fit each other.
template <class T> int64_t solve(const Problem<T>& problem) {
    if (!consistent(problem)) return 2;
    std::atomic<int64_t> next{0}, exhausted{0};
    const auto work = [&] {
        try {
            Task<T> solver(problem);
            for (int64_t task; (task = next++) < problem.batch;) {
                try {
                    solver.solve(task);
                } catch (const Failure& failure) {
                    problem.code[task] = failure.code, problem.failed_at[task] = failure.time;
                    problem.value[task] = failure.value, problem.bound[task] = failure.bound;
                }
            }
        } catch (const std::exception&) {
            exhausted = 1, next = problem.batch;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t n = 1; n < std::min(problem.threads, problem.batch); ++n) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: the others do the work
    }
    work();
    for (auto& thread : others) thread.join();
    return exhausted;
}

template <class T> void activate(int64_t kind, T* values, int64_t vectors) {
    with<T>(Activation(kind), [&](auto f) {
        for (T* v = values; v < values + vectors * Simd<T>::lanes; v += Simd<T>::lanes) store(v, f.value(load(v)));
    });
}

}  // namespace

extern "C" {
int64_t amaml_problem_bytes() { return sizeof(Problem<float>); }
// The fields of Problem, which are alike for both types of number, and how many: for the test of Python's mirror.
const Field* amaml_problem_fields(int64_t* count) {
    *count = std::size(Fields<Problem<float>>::all);
    return Fields<Problem<float>>::all;
}
int64_t amaml_vector_bytes() { return VECTOR_BYTES; }
int64_t amaml_solve_float32(const Problem<float>* problem) { return solve(*problem); }
int64_t amaml_solve_float64(const Problem<double>* problem) { return solve(*problem); }
// σ in place, on whole vectors: for tests of its accuracy.
void amaml_activate_float32(int64_t kind, float* values, int64_t vectors) { activate(kind, values, vectors); }
void amaml_activate_float64(int64_t kind, double* values, int64_t vectors) { activate(kind, values, vectors); }
}
