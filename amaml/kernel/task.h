// The meta-gradient of one task: the forward flow with step control and stability guard, the query loss, and the discrete or
// interpolated adjoint with checkpointing; or the forward flow alone. It implements amaml/flow and amaml/adjoint, which work on
// batches and any losses, for a single task with a fully connected network and regression losses.
//
// The source is the same for CPUs and GPUs. A block of threads executes it, all of them with the same scalars; on a CPU a block
// is one thread. Vectors are shared by the block: loops over them (each), sums (total) and the network's products divide the
// work.
#pragma once
#include "arithmetic.h"
#include "block.h"
#include "checkpointing.h"
#include "kinks.h"
#include "network.h"
#include "problem.h"

// Constants of amaml/flow/control.py, guard.py and solve.py, and of amaml/adjoint/equation.py and interpolated.py.
constexpr double SAFETY = 0.9, SHARE = 0.1, SHRINK = 0.2, GROW = 10, SMALLEST_STEP = 1e-12, END_SLACK = 1.1;
constexpr double FRESH = 0.1, GROWTH_OF_FLOW = 2, GROWTH_OF_FIXED_STEPS = 100;
constexpr double LAMBDA_SHARE = 0.5, ROUNDING = 4;
constexpr int64_t FIRST_ITERATIONS = 12, CHECK_EVERY = 16, SEGMENT = 16, MOST_ADJOINT_STEPS = 1000000;
constexpr int64_t CHEAP_BYTES = 1 << 20;  // up to this size, all states of a trajectory are kept
constexpr int64_t SLOT_BYTES = 1 << 18;   // up to this size, the activations of each stage are kept

template <class T> class Task {
  public:
    Task(const Problem<T>& problem, Memory& memory)
        : p(problem), P(problem.parameters), support(memory, p.support_points, p.widths[0], p.widths[p.layers], p.chunk),
          query(memory, p.query_points, p.widths[0], p.widths[p.layers], p.chunk),
          net(memory, p.layers, p.widths, Activation(p.activation), larger(support.length, query.length), slots()),
          u(take<T>(memory, P)), next(take<T>(memory, P)), slope(take<T>(memory, P)), end_slope(take<T>(memory, P)),
          lambda(take<T>(memory, P)), scratch(take<T>(memory, P)), cotangent(take<T>(memory, P)), power(take<T>(memory, P)),
          root_rates(take<T>(memory, p.rates ? P : 0)), jumps(take<T>(memory, p.horizons * P)),
          states(take<T>(memory, p.stages * P)), slopes(take<T>(memory, p.stages * P)), kept(memory, most_kept(), P),
          between(memory, p.checkpoints < 0 ? most_between() : p.checkpoints + 2, P), places(memory, larger<int64_t>(1, p.checkpoints + 1)),
          sizes(memory, is_adaptive(p) ? most_steps() : 0), starts(memory, controlled(most_steps())), cuts(memory, controlled(most_steps())),
          boundaries(memory, p.horizons + 1), arrivals(memory, p.horizons + 1), units(memory, p.tensors),
          dense_states(take<T>(memory, controlled((SEGMENT + 1) * P))), dense_slopes(take<T>(memory, controlled((SEGMENT + 1) * P))),
          dense_middles(take<T>(memory, controlled(SEGMENT * P))), y(take<T>(memory, controlled(P + integrals()))),
          y_next(take<T>(memory, controlled(P + integrals()))), y_error(take<T>(memory, controlled(P + integrals()))),
          y_slopes(take<T>(memory, controlled((p.stages + 1) * (P + integrals())))), at(take<T>(memory, controlled(P))),
          kinks(problem, memory, watched()) {}

    void solve(int64_t task) {
        b = task;
        net.start();
        support.fill(p.support_x, p.support_y, b);
        if (p.backward) query.fill(p.query_x, p.query_y, b);
        if (p.rates) each(P, [&](int64_t i) { root_rates[i] = T(sqrt(double(p.rates[i]))); });
        kept.clear(1), sizes.clear(), starts.clear(), cuts.clear(), boundaries.clear(), arrivals.clear();
        boundaries.add(0), arrivals.add(0);
        rounds = segments = rejected = gradients = hvps = 0;
        by_proximal = 0, growth = 0, bad_loss = {SUCCESS, 0};
        lambda_most = T(NAN);
        copy(P, p.theta, u.data());
        if (is_adaptive(p)) forward_adaptive();
        else forward_fixed();
        if (bad_loss.code != SUCCESS) fail(bad_loss);
        if (p.backward) backward();
        put(p.accepted + b, rounds), put(p.rejected + b, rejected), put(p.lambda_max + b, lambda_most);
        put(p.gradient_count + b, gradients), put(p.hvp_count + b, hvps);
    }

  private:
    // ---- the flow f(u) = −α∘(∇L(u) + ρ(u−θ)), products with its Jacobian, and the counts of evaluations
    OUT_OF_LINE void force(const T* at, T* out, int64_t slot = 0) {
        net.gradient(support, at, out, slot);
        ++gradients;
        const T rho = T(p.proximal);
        if (rho != 0) fill(P, out, [=, theta = p.theta](int64_t i) { return out[i] + rho * (at[i] - theta[i]); });
    }
    OUT_OF_LINE void field(const T* at, T* out, int64_t slot = 0) {
        if (!p.rates && p.proximal == 0) {
            net.gradient(support, at, out, slot, T(-1));
            ++gradients;
            return;
        }
        force(at, out, slot);
        fill(P, out, [=, rates = p.rates](int64_t i) { return out[i] * (rates ? -rates[i] : T(-1)); });
    }
    OUT_OF_LINE void hessian(const T* at, const T* v, T* out, int64_t slot, bool known) {
        net.hvp(support, at, v, out, slot, known);
        ++hvps;
        const T rho = T(p.proximal);
        if (rho != 0) fill(P, out, [=](int64_t i) { return out[i] + rho * v[i]; });
    }
    // (∇²L + ρ)(α∘v), the negative of the vector-Jacobian product (∂f/∂u)ᵀ v.
    OUT_OF_LINE void negative_vjp(const T* at, const T* v, T* out, int64_t slot, bool known) {
        if (p.rates) fill(P, scratch.data(), [&](int64_t i) { return v[i] * p.rates[i]; });
        hessian(at, p.rates ? scratch.data() : v, out, slot, known);
    }

    // ---- the guard: one power iteration on √α(∇²L + ρ)√α at `at`. `known`: slot 0 already holds the activations there.
    OUT_OF_LINE T iterate(const T* at, T* vector, bool known) {
        const double along = total(P, [&](int64_t i) { return double(vector[i]) * p.power_start[i]; });
        const T unit = T(1 / sqrt(1 + 2 * FRESH * along + FRESH * FRESH)), fresh = T(FRESH) * unit;
        fill(P, scratch.data(), [&](int64_t i) {
            const T mixed = unit * vector[i] + fresh * p.power_start[i];
            return p.rates ? mixed * root_rates[i] : mixed;
        });
        hessian(at, scratch.data(), cotangent.data(), 0, known);
        if (p.rates) fill(P, cotangent.data(), [&](int64_t i) { return cotangent[i] * root_rates[i]; });
        const T size = T(sqrt(total(P, [&](int64_t i) { return double(cotangent[i]) * cotangent[i]; })));
        if (size != 0) fill(P, vector, [&](int64_t i) { return cotangent[i] / size; });
        return size;
    }
    OUT_OF_LINE void first_iterations(bool known) {
        copy(P, p.power_start, power.data());
        for (int64_t n = 0; n < FIRST_ITERATIONS; ++n) lambda_now = iterate(u.data(), power.data(), known || n);
        if (!finite(lambda_now)) fail(Failure{NON_FINITE, 0});
        lambda_most = lambda_now;
    }

    // ---- steps
    const T* state(int64_t stage, const T* from) const { return stage ? &states[stage * P] : from; }
    // out = from + h·Σ_j c_j slopes_j, j < count
    OUT_OF_LINE void combine(const T* from, T h, const double* c, int64_t count, T* out) const {
        add_weighted(P, from, h, c, count, slopes.data(), out);
    }
    // Computes the stage states (the first is `from` itself) and the slopes of the first `count` stages. `first` is the first
    // slope, if it is known already. The activations of a stage are kept in its slot.
    OUT_OF_LINE void stages(const T* from, T h, int64_t count, const T* first) {
        const double* row = p.a;
        for (int64_t s = 0; s < p.stages; row += s++) {
            if (s) combine(from, h, row, s, &states[s * P]);
            if (s || !first) { if (s < count) field(state(s, from), &slopes[s * P], slot(s)); }
            else copy(P, first, slopes.data());
        }
    }
    // The first step of a segment, and the one after its last. For the discrete adjoint, a segment is one step.
    int64_t begin_of(int64_t segment) const { return is_controlled(p) ? cuts[segment] : segment; }
    int64_t end_of(int64_t segment) const { return segment + 1 < segments ? begin_of(segment + 1) : rounds; }
    OUT_OF_LINE void advance(int64_t segment, T* at) {
        for (int64_t number = begin_of(segment); number < end_of(segment); ++number) {
            const T h = step_size(number);
            stages(at, h, p.stages, nullptr);
            combine(at, h, p.b, p.stages, at);
        }
    }
    T step_size(int64_t number) const {
        if (is_adaptive(p)) return sizes[number];
        int64_t k = 0;
        while (k + 1 < p.horizons && k + 1 < boundaries.count() && boundaries[k + 1] <= number) ++k;
        return T(p.steps[k]);
    }
    int64_t slots() const {
        int64_t width = 0;
        for (int64_t l = 1; l <= p.layers; ++l) width += p.widths[l];
        return support.chunks == 1 && width * support.length * int64_t(sizeof(T)) <= SLOT_BYTES ? p.stages : 1;
    }
    int64_t slot(int64_t stage) const { return net.slots() > 1 ? stage : 0; }

    // ---- the forward solve: forward.h
    OUT_OF_LINE void offer();
    // How many states the forward solve may keep at this spacing; with a limit, the other half is for the reverse sweep.
    int64_t most_at(int64_t spacing) const {
        if (p.checkpoints >= 0) return larger<int64_t>(1, (p.checkpoints - 1) / 2);
        return spacing == 1 ? larger<int64_t>(2, CHEAP_BYTES / (P * int64_t(sizeof(T)))) : 2 * spacing;
    }
    int64_t fixed_steps() const {
        int64_t all = 0;
        for (int64_t k = 0; k < p.horizons; ++k) all += p.counts[k];
        return all;
    }
    // The capacity of lists that can't grow: the most steps, states between two kept ones, and kept states.
    int64_t most_steps() const { return is_adaptive(p) ? p.room : fixed_steps(); }
    int64_t most_between() const { return !p.backward ? 0 : 2 + 2 * int64_t(sqrt(double(most_steps()))); }
    int64_t most_kept() const { return p.backward ? 1 + larger(most_at(1), p.checkpoints < 0 ? 2 * most_between() : 0) : 0; }
    OUT_OF_LINE void arrive(int64_t k);
    OUT_OF_LINE bool all_finite(const T* v) const;

    OUT_OF_LINE void forward_fixed();
    OUT_OF_LINE void check(int64_t k, double time);
    // The largest value of the solver's `step` with which h·λmax is at most nine tenths of the limit in every interval between
    // horizons.
    double largest_step(double lambda) const {
        double largest = INFINITY;
        for (int64_t k = 0; k < p.horizons; ++k) {
            const double interval = p.counts[k] * p.steps[k];
            largest = smaller(largest, interval / ceil(interval * lambda / (0.9 * p.stability_limit)));
        }
        return largest;
    }

    OUT_OF_LINE void forward_adaptive();
    OUT_OF_LINE double integrate(double start, double end, double h);
    OUT_OF_LINE double try_step(T h);
    // The largest entry of the error of a step from u to `end`, each divided by its share of the tolerance; NaN if any is NaN.
    template <class F> double over_tolerance(F error, const T* end) {
        const T rtol = T(SHARE * p.rtol), atol = T(SHARE * p.atol), rounding = EPSILON<T>;
        return largest<T>(P, [&](int64_t i) {
            const T size = larger(absolute(u[i]), absolute(end[i])), off = absolute(T(error(i)));
            return off == 0 ? T(0) : off / larger(rtol * size + atol * p.scales[i], rounding * size);
        });
    }
    OUT_OF_LINE bool stable(double h);
    OUT_OF_LINE double first_step();

    // ---- kinks: only relu has them, and only the adjoint equation requires that there are none
    bool watched() const { return is_controlled(p) && p.backward && Activation(p.activation) == Activation::relu; }
    auto to_force() { return [this](const T* at, T* out) { force(at, out); }; }

    // ---- backward
    void backward() {
        fill(P, lambda.data(), [](int64_t) { return T(0); });
        for (int64_t k = p.horizons - 1; k >= 0; --k) {
            fill(P, lambda.data(), [&](int64_t i) { return lambda[i] + jumps[k * P + i]; });
            by_length = 0;
            if (is_controlled(p)) begin_adjoint(k);
            back_to(arrivals[k], arrivals[k + 1]);
            if (is_controlled(p)) end_adjoint();
            if (!is_adaptive(p) && p.want_length) put(p.by_length + b * p.horizons + k, T(by_length));
        }
        if (p.want_proximal) put(p.by_proximal + b, T(by_proximal));
        T* out = p.gradients + b * P;
        fill(P, out, [&](int64_t i) { return out[i] + (lambda[i] + p.through_theta[b * P + i]); });
        if (!all_finite(out)) fail(Failure{NON_FINITE, 0});
    }
    // Reverses the segments end − 1 … start, using the kept states.
    OUT_OF_LINE void back_to(int64_t start, int64_t end) {
        while (end > start) {
            const int64_t number = kept.last_segment(), first = larger(number, start);
            if (number == end - 1) {
                reverse(number, kept.last_state());
                if (number > 0) kept.drop();
                end = number;
                continue;
            }
            copy(P, kept.last_state(), between[0]);
            for (int64_t n = number; n < first; ++n) advance(n, between[0]);
            if (p.checkpoints < 0) {
                for (int64_t n = first; n < end - 1; ++n) {
                    copy(P, static_cast<const T*>(between[n - first]), between[n - first + 1]);
                    advance(n, between[n - first + 1]);
                }
                for (int64_t n = end - 1; n >= first; --n) reverse(n, between[n - first]);
            } else {
                back(first, end, larger<int64_t>(0, p.checkpoints - 1 - kept.count()));
            }
            if (number >= start && number > 0) kept.drop();
            end = first;
        }
    }
    // Reverses the segments end − 1 … start from the state before segment `start`, which is the first in `between`, keeping at
    // most `free_slots` further states (Griewank & Walther 2000).
    OUT_OF_LINE void back(int64_t start, int64_t end, int64_t free_slots) {
        places.clear(), places.add(start);
        while (places.count()) {
            const int64_t depth = places.count() - 1, from = places.last(), length = end - from;
            T* carried = between[depth + 1];
            if (length > 1 && free_slots) {
                const int64_t middle = from + split(length, free_slots + 1);
                copy(P, static_cast<const T*>(between[depth]), carried);
                for (int64_t n = from; n < middle; ++n) advance(n, carried);
                places.add(middle), --free_slots;
                continue;
            }
            for (int64_t n = end - 1; n >= from; --n) {
                copy(P, static_cast<const T*>(between[depth]), carried);
                for (int64_t m = from; m < n; ++m) advance(m, carried);
                reverse(n, carried);
            }
            end = from, places.drop(), ++free_slots;
        }
    }
    // Takes λ from the end of a segment to its start; `from` is the state at its start.
    void reverse(int64_t segment, const T* from) {
        if (is_controlled(p)) adjoint_along(segment, from);
        else reverse_step(segment, from);
    }
    // The same for one step, by the transpose of the step's derivative.
    OUT_OF_LINE void reverse_step(int64_t number, const T* from) {
        const T h = step_size(number);
        stages(from, h, p.stages - 1, nullptr);
        for (int64_t s = p.stages - 1; s >= 0; --s) {  // slopes[s]: the stage's negative vector-Jacobian product
            const T weight = h * T(p.b[s]);
            fill(P, cotangent.data(), [&](int64_t i) { return weight * lambda[i]; });
            for (int64_t j = s + 1; j < p.stages; ++j)
                if (const T a = T(p.a[j * (j - 1) / 2 + s]); a != 0)
                    fill(P, cotangent.data(), [&, back = h * a](int64_t i) { return cotangent[i] - back * slopes[j * P + i]; });
            bool known = net.slots() > 1 && s + 1 < p.stages;
            known |= visit(state(s, from), slot(s));
            negative_vjp(state(s, from), cotangent.data(), &slopes[s * P], slot(s), known);
            if (!s && p.guard) watch(number, h);
        }
        for (int64_t s = p.stages - 1; s >= 0; --s)
            fill(P, lambda.data(), [&](int64_t i) { return lambda[i] - slopes[s * P + i]; });
    }
    // Tests the first stage of a reverse step for unstable growth of λ, as amaml.flow.guard.ReverseGuard.
    OUT_OF_LINE void watch(int64_t number, T h) {
        const auto size = [&](const T* v) {
            return sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
        };
        const double before = size(cotangent.data()), product = h * size(slopes.data()) / before;
        if (!(before > sqrt(double(LEAST_NORMAL<T>)) && product > p.stability_limit)) return;
        growth += (p.stages + 1) * log(product / p.stability_limit);
        if (growth <= log(is_adaptive(p) ? GROWTH_OF_FLOW : GROWTH_OF_FIXED_STEPS)) return;
        double time = 0;
        for (int64_t n = 0; n < number; ++n) time += step_size(n);
        fail(Failure{STABILITY_LIMIT, time, product, is_adaptive(p) ? NAN : largest_step(product / h)});
    }
    // Adds the contribution of a stage with cotangent k̄ = `cotangent` to the derivatives by the field's own parameters; whether
    // it evaluated the force at `at`.
    OUT_OF_LINE bool visit(const T* at, int64_t slot) {
        const T rho = T(p.proximal), *alpha = p.rates;
        T* through = p.through_theta + b * P;
        if (rho != 0) fill(P, through, [&](int64_t i) { return through[i] + rho * (alpha ? cotangent[i] * alpha[i] : cotangent[i]); });
        if (p.want_proximal)
            by_proximal -= total(P, [&](int64_t i) {
                return double(cotangent[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]);
            });
        if (!p.want_rates && (is_adaptive(p) || !p.want_length)) return false;
        force(at, scratch.data(), slot);
        if (p.want_rates) fill(P, p.by_rates + b * P, [&](int64_t i) { return p.by_rates[b * P + i] - cotangent[i] * scratch[i]; });
        by_length -= total(P, [&](int64_t i) { return double(cotangent[i]) * (alpha ? alpha[i] : T(1)) * scratch[i]; });
        return true;
    }

    // ---- the adjoint equation: λ and the integrals as one vector y, solved from a segment's end to its start: adjoint_equation.h
    int64_t integrals() const { return (p.proximal != 0 ? P : 0) + (p.want_rates ? P : 0) + (p.want_proximal ? 1 : 0); }
    T* slope_of(int64_t stage) { return &y_slopes[stage * (P + integrals())]; }
    int64_t controlled(int64_t numbers) const { return is_controlled(p) ? numbers : 0; }
    OUT_OF_LINE void begin_adjoint(int64_t k);
    OUT_OF_LINE void end_adjoint();
    OUT_OF_LINE void adjoint_along(int64_t segment, const T* from);
    OUT_OF_LINE void make_dense(int64_t segment, const T* from);
    OUT_OF_LINE void interpolate(int64_t segment, double t);
    OUT_OF_LINE void y_slope(int64_t segment, double t, const T* v, T* out);
    OUT_OF_LINE double try_adjoint(int64_t segment, double h);
    OUT_OF_LINE static double norm(const T* v, int64_t n);
    OUT_OF_LINE double adjoint_over_tolerance(const T* error, const T* end);
    template <class F> void for_integrals(F run) {
        int64_t from = P;
        if (p.proximal != 0) run(0, from, P), from += P;
        if (p.want_rates) run(1, from, P), from += P;
        if (p.want_proximal) run(2, from, 1);
    }
    OUT_OF_LINE void add_lengths(double* lengths, const T* end = nullptr);
    OUT_OF_LINE void note_stiffness();
    OUT_OF_LINE double first_adjoint_step(int64_t segment);

    const Problem<T>& p;
    const int64_t P;
    int64_t b = 0;
    Points<T> support, query;
    Network<T> net;
    Values<T> u, next, slope, end_slope, lambda, scratch, cotangent, power, root_rates, jumps, states, slopes;
    // cotangent holds the stage's k̄ on the reverse sweep; elsewhere it and scratch are for intermediate results.
    Kept<T> kept;              // states kept by the forward solve
    States<T> between;         // states recomputed from the last of those
    List<int64_t> places;      // the segments that start from the states in between
    List<T> sizes;             // the accepted adaptive steps
    List<double> starts;       // the start of each step; for the adjoint equation only
    List<int64_t> cuts;        // the first step of each segment; for the adjoint equation only
    List<int64_t> boundaries;  // the number of steps up to each horizon, after a first 0
    List<int64_t> arrivals;    // the number of segments up to each horizon, after a first 0
    List<double> units;        // the norms of λ's tensors
    Values<T> dense_states, dense_slopes, dense_middles;  // dense output of a segment
    Values<T> y, y_next, y_error, y_slopes, at;           // of the adjoint equation
    double time = 0, wish = 0, gone[3] = {};              // t, the next step, the sums of the changes of each integral
    bool fresh = false;                                   // whether slope and step size have to be computed
    Kinks<T> kinks;
    int64_t rounds = 0, segments = 0, rejected = 0, gradients = 0, hvps = 0;  // numbers of steps and evaluations
    T lambda_most = 0;
    int64_t adjoint_steps = 0;
    T lambda_now = 0;
    Failure bad_loss{SUCCESS, 0};  // the first horizon whose loss isn't finite
    double by_proximal = 0, by_length = 0, growth = 0;
};

#include "adjoint_equation.h"
#include "forward.h"
