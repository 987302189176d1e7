// The whole meta-gradient of a task: forward flow with step control and stability guard, query loss, discrete or interpolated
// adjoint with checkpointing; or the forward flow alone. It does what amaml/flow and amaml/adjoint do for batches of any losses,
// for fully connected networks and regression losses, with a task's data close to the processor.
//
// One source for processors and GPUs. A block of threads goes through it in step, all of them with the same scalars; on a processor
// a block is one thread. Vectors are shared: loops over them (each), sums (total) and the network's products divide the work.
#pragma once
#include "arithmetic.h"
#include "block.h"
#include "checkpointing.h"
#include "kinks.h"
#include "network.h"
#include "problem.h"

// As in amaml/flow/control.py, guard.py, solve.py, amaml/adjoint/equation.py and interpolated.py.
constexpr double SAFETY = 0.9, SHARE = 0.1, SHRINK = 0.2, GROW = 10, SMALLEST_STEP = 1e-12, END_SLACK = 1.1;
constexpr double FRESH = 0.1, GROWTH_OF_FLOW = 2, GROWTH_OF_FIXED_STEPS = 100;
constexpr double LAMBDA_SHARE = 0.5, ROUNDING = 4;
constexpr int64_t FIRST_ITERATIONS = 12, CHECK_EVERY = 16, SEGMENT = 16, MOST_ADJOINT_STEPS = 1000000;
constexpr int64_t CHEAP_BYTES = 1 << 20;  // of states of one trajectory, kept without thinning them
constexpr int64_t SLOT_BYTES = 1 << 18;   // of activations worth remembering for each stage

template <class T> class Task {
  public:
    Task(const Problem<T>& problem, Memory& memory)
        : p(problem), P(problem.parameters), support(memory, p.support_points, p.widths[0], p.widths[p.layers], p.chunk),
          query(memory, p.query_points, p.widths[0], p.widths[p.layers], p.chunk),
          net(memory, p.layers, p.widths, Activation(p.activation), larger(support.length, query.length), slots()),
          u(take<T>(memory, P)), next(take<T>(memory, P)), slope(take<T>(memory, P)), end_slope(take<T>(memory, P)),
          lambda(take<T>(memory, P)), scratch(take<T>(memory, P)), seed(take<T>(memory, P)), power(take<T>(memory, P)),
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
        by_proximal = 0, growth = 0, misjudged = {SUCCESS, 0};
        lambda_most = T(NAN);
        copy(P, p.theta, u.data());
        if (is_adaptive(p)) forward_adaptive();
        else forward_fixed();
        if (misjudged.code != SUCCESS) fail(misjudged);
        if (p.backward) backward();
        put(p.accepted + b, rounds), put(p.rejected + b, rejected), put(p.lambda_max + b, lambda_most);
        put(p.gradient_count + b, gradients), put(p.hvp_count + b, hvps);
    }

  private:
    // ---- the flow f(u) = −α∘(∇L(u) + ρ(u−θ)), its Jacobian's products, and what they cost
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
    // (∇²L + ρ)·α·v, the negative of the transposed Jacobian's product.
    OUT_OF_LINE void pulled(const T* at, const T* v, T* out, int64_t slot, bool known) {
        if (p.rates) fill(P, scratch.data(), [&](int64_t i) { return v[i] * p.rates[i]; });
        hessian(at, p.rates ? scratch.data() : v, out, slot, known);
    }

    // ---- the guard: power iteration on √α(∇²L + ρ)√α at `at`, whose activations slot 0 may hold already
    OUT_OF_LINE T look(const T* at, T* vector, bool known) {
        const double along = total(P, [&](int64_t i) { return double(vector[i]) * p.power_start[i]; });
        const T unit = T(1 / sqrt(1 + 2 * FRESH * along + FRESH * FRESH)), fresh = T(FRESH) * unit;
        fill(P, scratch.data(), [&](int64_t i) {
            const T mixed = unit * vector[i] + fresh * p.power_start[i];
            return p.rates ? mixed * root_rates[i] : mixed;
        });
        hessian(at, scratch.data(), seed.data(), 0, known);
        if (p.rates) fill(P, seed.data(), [&](int64_t i) { return seed[i] * root_rates[i]; });
        const T size = T(sqrt(total(P, [&](int64_t i) { return double(seed[i]) * seed[i]; })));
        if (size != 0) fill(P, vector, [&](int64_t i) { return seed[i] / size; });
        return size;
    }
    OUT_OF_LINE void first_looks(bool known) {
        copy(P, p.power_start, power.data());
        for (int64_t n = 0; n < FIRST_ITERATIONS; ++n) lambda_now = look(u.data(), power.data(), known || n);
        if (!finite(lambda_now)) fail(Failure{NON_FINITE, 0});
        lambda_most = lambda_now;
    }

    // ---- steps
    const T* state(int64_t stage, const T* from) const { return stage ? &states[stage * P] : from; }
    // out = from + h·Σ_j c_j slopes_j, j < count
    OUT_OF_LINE void combine(const T* from, T h, const double* c, int64_t count, T* out) const {
        add_weighted(P, from, h, c, count, slopes.data(), out);
    }
    // Stage states (the first is `from` itself) and the slopes of the first `count`; a stage's activations in its slot.
    OUT_OF_LINE void stages(const T* from, T h, int64_t count, const T* first) {
        const double* row = p.a;
        for (int64_t s = 0; s < p.stages; row += s++) {
            if (s) combine(from, h, row, s, &states[s * P]);
            if (s || !first) { if (s < count) field(state(s, from), &slopes[s * P], slot(s)); }
            else copy(P, first, slopes.data());
        }
    }
    // The steps of a segment: one where they are reversed one by one, else those up to the next cut.
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

    // ---- forward
    // Keeps u, where a segment starts, if it is due: all while that is cheap, then about √N; or half a limit.
    OUT_OF_LINE void offer() {
        if (!p.backward) return;
        if (is_controlled(p)) {
            if (segments != arrivals.last() && rounds - cuts.last() < SEGMENT) return;
            cuts.add(rounds);
        }
        kept.offer(segments++, u.data());
        while (kept.count() > most_at(kept.spacing())) kept.thin();
    }
    // How many states may be kept: the rest of a limit is for the way back.
    int64_t most_at(int64_t spacing) const {
        if (p.checkpoints >= 0) return larger<int64_t>(1, (p.checkpoints - 1) / 2);
        return spacing == 1 ? larger<int64_t>(2, CHEAP_BYTES / (P * int64_t(sizeof(T)))) : 2 * spacing;
    }
    int64_t fixed_steps() const {
        int64_t all = 0;
        for (int64_t k = 0; k < p.horizons; ++k) all += p.counts[k];
        return all;
    }
    // For lists and states that can't grow: the most steps, and the most states for them.
    int64_t most_steps() const { return is_adaptive(p) ? p.room : fixed_steps(); }
    int64_t most_between() const { return !p.backward ? 0 : 2 + 2 * int64_t(sqrt(double(most_steps()))); }
    int64_t most_kept() const { return p.backward ? 1 + larger(most_at(1), p.checkpoints < 0 ? 2 * most_between() : 0) : 0; }
    OUT_OF_LINE void arrive(int64_t k) {
        boundaries.add(rounds), arrivals.add(segments);
        copy(P, u.data(), p.ends + (b * p.horizons + k) * P);
        if (!p.backward) return;
        T *jump = &jumps[k * P], *direct = p.gradients + b * P, loss = net.gradient(query, u.data(), jump);
        const T weight = T(p.weights[k]), rho = T(p.proximal_in_query ? p.proximal : 0);
        const double far = total(P, [&](int64_t i) { return double(u[i] - p.theta[i]) * (u[i] - p.theta[i]); });
        if (rho != 0) loss += T(0.5 * rho * far);
        each(P, [&](int64_t i) {
            const T pull = rho * (u[i] - p.theta[i]);
            jump[i] = weight * (jump[i] + pull);
            direct[i] -= weight * pull;
        });
        if (p.proximal_in_query) by_proximal += 0.5 * weight * far;
        if (misjudged.code == SUCCESS && !(finite(loss) && all_finite(jump))) misjudged = {NON_FINITE, p.times[k]};
        put(p.losses + b * p.horizons + k, loss);
    }
    OUT_OF_LINE bool all_finite(const T* v) const {
        return finite(total(P, [&](int64_t i) { return double(v[i]) - double(v[i]); }));
    }

    OUT_OF_LINE void forward_fixed() {
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
    OUT_OF_LINE void check(int64_t k, double time) {
        const T h = T(p.steps[k]);
        if (!all_finite(u.data())) fail(Failure{NON_FINITE, time});
        if (!p.guard) return;
        if (rounds == 0) first_looks(false);
        else lambda_now = look(u.data(), power.data(), false);
        if (!finite(lambda_now)) fail(Failure{NON_FINITE, time});
        lambda_most = larger(lambda_most, lambda_now);
        if (!(h * lambda_now <= p.stability_limit))
            fail(Failure{STABILITY_LIMIT, time, double(h * lambda_now), largest_step(lambda_now)});
    }
    // The largest step option that leaves nine tenths of the limit, as equal steps of every interval between horizons.
    double largest_step(double lambda) const {
        double largest = INFINITY;
        for (int64_t k = 0; k < p.horizons; ++k) {
            const double interval = p.counts[k] * p.steps[k];
            largest = smaller(largest, interval / ceil(interval * lambda / (0.9 * p.stability_limit)));
        }
        return largest;
    }

    OUT_OF_LINE void forward_adaptive() {
        field(u.data(), slope.data());
        if (p.guard) first_looks(true);
        if (watched()) kinks.start(u.data(), to_force());
        double h = first_step(), start = 0;
        for (int64_t k = 0; k < p.horizons; start = p.times[k++]) {
            h = integrate(start, p.times[k], h);
            arrive(k);
            const T* jump = &jumps[k * P];
            put(p.by_length + b * p.horizons + k, T(total(P, [&](int64_t i) { return double(slope[i]) * jump[i]; })));
        }
    }
    // Carries u and its slope from start to end; returns the step that would be tried next.
    OUT_OF_LINE double integrate(double start, double end, double h) {
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
            h = trial * smaller(missing(wish) ? SHRINK : within(wish, SHRINK, GROW), good ? GROW : SAFETY);
            if (good && trial < before) h = larger(h, before);  // the end, which cut it short, says little about the next
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
    // Fills next and end_slope; returns the error over tolerance.
    OUT_OF_LINE double try_step(T h) {
        stages(u.data(), h, p.stages, slope.data());
        combine(u.data(), h, p.b, p.stages, next.data());
        field(next.data(), end_slope.data());
        add_weighted(P, static_cast<const T*>(nullptr), h, p.error, p.stages, slopes.data(), seed.data());
        const T last = h * T(p.error[p.stages]);
        return over_tolerance([&](int64_t i) { return seed[i] + last * end_slope[i]; }, next.data());
    }
    // The largest entry of an error of u, on the way to `end`, over its share of the tolerance; NaN if any is NaN.
    template <class F> double over_tolerance(F error, const T* end) {
        const T rtol = T(SHARE * p.rtol), atol = T(SHARE * p.atol), rounding = EPSILON<T>;
        return largest<T>(P, [&](int64_t i) {
            const T size = larger(absolute(u[i]), absolute(end[i])), off = absolute(T(error(i)));
            return off == 0 ? T(0) : off / larger(rtol * size + atol * p.scales[i], rounding * size);
        });
    }
    // Whether a step that ends at `next` may stand. One that may not keeps its vector and learns how stiff it gets.
    OUT_OF_LINE bool stable(double h) {
        if (!p.guard) return true;
        copy(P, power.data(), lambda.data());
        const T found = look(next.data(), lambda.data(), true);
        if (finite(found)) lambda_now = found;
        if (!(h * found <= END_SLACK * p.step_cap)) return false;
        power.swap(lambda);
        lambda_most = larger(lambda_most, lambda_now);
        return true;
    }
    // Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
    OUT_OF_LINE double first_step() {
        const auto size = [&](auto v) { return over_tolerance(v, u.data()); };
        const double d0 = size([&](int64_t i) { return u[i]; }), d1 = size([&](int64_t i) { return slope[i]; });
        const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        fill(P, next.data(), [&](int64_t i) { return u[i] + T(h0) * slope[i]; });
        field(next.data(), end_slope.data());
        const double d2 = size([&](int64_t i) { return end_slope[i] - slope[i]; }) / h0, largest = larger(d1, d2);
        const double h1 = largest <= 1e-15 ? larger(1e-6, h0 * 1e-3) : pow(0.01 / largest, 1.0 / p.order);
        const double h = smaller(100 * h0, h1);
        return missing(h) ? 1e-6 : larger(h, SMALLEST_STEP * p.times[p.horizons - 1]);
    }

    // ---- kinks: relu alone has them, and the adjoint equation alone minds
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
    // Reverses the segments end − 1 … start, from the kept states.
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
    // The same from the state before segment `start`, the first of `between`, keeping `spare` more (Griewank & Walther 2000).
    OUT_OF_LINE void back(int64_t start, int64_t end, int64_t spare) {
        places.clear(), places.add(start);
        while (places.count()) {
            const int64_t depth = places.count() - 1, from = places.last(), length = end - from;
            T* carried = between[depth + 1];
            if (length > 1 && spare) {
                const int64_t middle = from + split(length, spare + 1);
                copy(P, static_cast<const T*>(between[depth]), carried);
                for (int64_t n = from; n < middle; ++n) advance(n, carried);
                places.add(middle), --spare;
                continue;
            }
            for (int64_t n = end - 1; n >= from; --n) {
                copy(P, static_cast<const T*>(between[depth]), carried);
                for (int64_t m = from; m < n; ++m) advance(m, carried);
                reverse(n, carried);
            }
            end = from, places.drop(), ++spare;
        }
    }
    // λ before a segment from λ after it; `from` is the state before it.
    void reverse(int64_t segment, const T* from) {
        if (is_controlled(p)) adjoint_along(segment, from);
        else reverse_step(segment, from);
    }
    // The same for a step, by the transpose of the step's derivative.
    OUT_OF_LINE void reverse_step(int64_t number, const T* from) {
        const T h = step_size(number);
        stages(from, h, p.stages - 1, nullptr);
        for (int64_t s = p.stages - 1; s >= 0; --s) {  // slopes: of stages after s, what they pull back, negative
            const T weight = h * T(p.b[s]);
            fill(P, seed.data(), [&](int64_t i) { return weight * lambda[i]; });
            for (int64_t j = s + 1; j < p.stages; ++j)
                if (const T a = T(p.a[j * (j - 1) / 2 + s]); a != 0)
                    fill(P, seed.data(), [&, back = h * a](int64_t i) { return seed[i] - back * slopes[j * P + i]; });
            bool known = net.slots() > 1 && s + 1 < p.stages;
            known |= visit(state(s, from), slot(s));
            pulled(state(s, from), seed.data(), &slopes[s * P], slot(s), known);
            if (!s && p.guard) watch(number, h);
        }
        for (int64_t s = p.stages - 1; s >= 0; --s)
            fill(P, lambda.data(), [&](int64_t i) { return lambda[i] - slopes[s * P + i]; });
    }
    // λ turns into the direction that blows up: as amaml.flow.guard.Lookout, after the first stage of a step back.
    OUT_OF_LINE void watch(int64_t number, T h) {
        const auto size = [&](const T* v) {
            return sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
        };
        const double before = size(seed.data()), product = h * size(slopes.data()) / before;
        if (!(before > sqrt(double(LEAST_NORMAL<T>)) && product > p.stability_limit)) return;
        growth += (p.stages + 1) * log(product / p.stability_limit);
        if (growth <= log(is_adaptive(p) ? GROWTH_OF_FLOW : GROWTH_OF_FIXED_STEPS)) return;
        double time = 0;
        for (int64_t n = 0; n < number; ++n) time += step_size(n);
        fail(Failure{STABILITY_LIMIT, time, product, is_adaptive(p) ? NAN : largest_step(product / h)});
    }
    // What the field's own parameters see of a stage with weighted adjoint `seed`; whether that took the force.
    OUT_OF_LINE bool visit(const T* at, int64_t slot) {
        const T rho = T(p.proximal), *alpha = p.rates;
        T* through = p.through_theta + b * P;
        if (rho != 0) fill(P, through, [&](int64_t i) { return through[i] + rho * (alpha ? seed[i] * alpha[i] : seed[i]); });
        if (p.want_proximal)
            by_proximal -= total(P, [&](int64_t i) {
                return double(seed[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]);
            });
        if (!p.want_rates && (is_adaptive(p) || !p.want_length)) return false;
        force(at, scratch.data(), slot);
        if (p.want_rates) fill(P, p.by_rates + b * P, [&](int64_t i) { return p.by_rates[b * P + i] - seed[i] * scratch[i]; });
        by_length -= total(P, [&](int64_t i) { return double(seed[i]) * (alpha ? alpha[i] : T(1)) * scratch[i]; });
        return true;
    }

    // ---- the adjoint equation: λ and the integrals beside it as one vector y, solved from the segment's end to its start
    int64_t integrals() const { return (p.proximal != 0 ? P : 0) + (p.want_rates ? P : 0) + (p.want_proximal ? 1 : 0); }
    T* slope_of(int64_t stage) { return &y_slopes[stage * (P + integrals())]; }
    int64_t controlled(int64_t numbers) const { return is_controlled(p) ? numbers : 0; }
    OUT_OF_LINE void begin_adjoint(int64_t k) {
        if (k + 1 == p.horizons) {
            fill(P + integrals(), y.data(), [](int64_t) { return T(0); });
            adjoint_steps = 0, gone[0] = gone[1] = gone[2] = 0;
            if (!p.guard) lambda_most = 0;
        }
        copy(P, lambda.data(), y.data());
        time = p.times[k], fresh = true;
    }
    OUT_OF_LINE void end_adjoint() {
        copy(P, y.data(), lambda.data());
        const T* from = y.data() + P;
        if (p.proximal != 0) copy(P, from, p.through_theta + b * P), from += P;
        if (p.want_rates) copy(P, from, p.by_rates + b * P), from += P;
        if (p.want_proximal && time == 0) by_proximal += *from;
    }
    OUT_OF_LINE void adjoint_along(int64_t segment, const T* from) {
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
            const double next_wish = trial * smaller(missing(grow) ? SHRINK : within(grow, SHRINK, GROW), good ? GROW : SAFETY);
            wish = good && trial < wish ? larger(wish, next_wish) : next_wish;
            if (!good) continue;
            note_stiffness();
            add_lengths(gone);
            y.swap(y_next);
            copy(P + integrals(), static_cast<const T*>(slope_of(p.stages)), slope_of(0));
            time = trial >= left ? end : time - trial;
        }
    }
    // The segment's states, slopes and middles of steps, made again from the state before it.
    OUT_OF_LINE void make_dense(int64_t segment, const T* from) {
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
    // u at t into `at`: quartic through a step's ends and middle (Shampine 1986), or the cubic of Hermite.
    OUT_OF_LINE void interpolate(int64_t segment, double t) {
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
    OUT_OF_LINE void y_slope(int64_t segment, double t, const T* v, T* out) {
        interpolate(segment, t);
        T* more = out + P;
        const T rho = T(p.proximal), *alpha = p.rates;
        if (rho != 0) {
            fill(P, more, [=](int64_t i) { return rho * (alpha ? v[i] * alpha[i] : v[i]); });
            more += P;
        }
        if (p.want_rates) {
            force(at.data(), seed.data());
            fill(P, more, [&](int64_t i) { return -v[i] * seed[i]; });
            more += P;
        }
        if (p.want_proximal)
            put(more, T(-total(P, [&](int64_t i) { return double(v[i]) * (alpha ? alpha[i] : T(1)) * (at[i] - p.theta[i]); })));
        pulled(at.data(), v, out, 0, p.want_rates);
        fill(P, out, [=](int64_t i) { return -out[i]; });
    }
    // Fills y_next and the slope there; returns the error over tolerance.
    OUT_OF_LINE double try_adjoint(int64_t segment, double h) {
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
    OUT_OF_LINE static double norm(const T* v, int64_t n) {
        const T most = largest<T>(n, [&](int64_t i) { return absolute(v[i]); });
        const double unit = most > 0 ? double(most) : 1;
        return unit * sqrt(total(n, [&](int64_t i) { return double(v[i]) / unit * (double(v[i]) / unit); }));
    }
    // An error on the way from y to `end` in units of what one step may have: see amaml/adjoint/equation.py. NaN if any is NaN.
    OUT_OF_LINE double adjoint_over_tolerance(const T* error, const T* end) {
        const double whole_error = total(P, [&](int64_t i) { return double(error[i]) - double(error[i]); });
        if (missing(whole_error)) return NAN;
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
    template <class F> void for_integrals(F run) {
        int64_t from = P;
        if (p.proximal != 0) run(0, from, P), from += P;
        if (p.want_rates) run(1, from, P), from += P;
        if (p.want_proximal) run(2, from, 1);
    }
    // Adds how far each integral goes from y to `end` (y_next unless given).
    OUT_OF_LINE void add_lengths(double* lengths, const T* end = nullptr) {
        if (!end) end = y_next.data();
        for_integrals([&](int64_t n, int64_t from, int64_t size) {
            lengths[n] += sqrt(total(size, [&](int64_t i) { const double way = end[from + i] - y[from + i]; return way * way; }));
        });
    }
    // λmax from below, by how fast λ changes along itself.
    OUT_OF_LINE void note_stiffness() {
        const auto size = [&](const T* v) {
            return sqrt(total(P, [&](int64_t i) { return double(v[i]) * v[i] * (p.rates ? p.rates[i] : T(1)); }));
        };
        const double of_lambda = size(y.data());
        if (of_lambda > 0) lambda_most = larger(lambda_most, T(size(slope_of(0)) / of_lambda));
    }
    // As first_step, for y.
    OUT_OF_LINE double first_adjoint_step(int64_t segment) {
        const int64_t size = P + integrals();
        const double d0 = adjoint_over_tolerance(y.data(), y.data()), d1 = adjoint_over_tolerance(slope_of(0), y.data());
        const double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
        fill(size, y_next.data(), [&, slopes = slope_of(0)](int64_t i) { return y[i] + T(h0) * slopes[i]; });
        y_slope(segment, time - h0, y_next.data(), slope_of(1));
        fill(size, y_error.data(), [now = slope_of(0), later = slope_of(1)](int64_t i) { return later[i] - now[i]; });
        const double d2 = adjoint_over_tolerance(y_error.data(), y.data()) / h0, largest = larger(d1, d2);
        const double h1 = largest <= 1e-15 ? larger(1e-6, h0 * 1e-3) : pow(0.01 / largest, 1.0 / p.order);
        const double h = smaller(100 * h0, h1);
        return missing(h) ? 1e-6 : larger(h, SMALLEST_STEP * p.times[p.horizons - 1]);
    }

    const Problem<T>& p;
    const int64_t P;
    int64_t b = 0;
    Points<T> support, query;
    Network<T> net;
    Values<T> u, next, slope, end_slope, lambda, scratch, seed, power, root_rates, jumps, states, slopes;
    Kept<T> kept;              // states by the number of the segment that starts from them
    States<T> between;         // made again from the last of those
    List<int64_t> places;      // segments that some of them start
    List<T> sizes;             // of the accepted adaptive steps
    List<double> starts;       // and when they begin, and
    List<int64_t> cuts;        // the number of the step at which each segment begins: both for the adjoint equation alone
    List<int64_t> boundaries;  // steps up to each horizon, 0 first
    List<int64_t> arrivals;    // segments up to each horizon, 0 first
    List<double> units;        // of λ's tensors
    Values<T> dense_states, dense_slopes, dense_middles;  // of a segment's steps
    Values<T> y, y_next, y_error, y_slopes, at;           // of the adjoint equation
    double time = 0, wish = 0, gone[3] = {};              // t, the next step, how far each integral has gone
    bool fresh = false;                                   // whether slope and step are to be found anew
    Kinks<T> kinks;
    int64_t rounds = 0, segments = 0, rejected = 0, gradients = 0, hvps = 0;  // steps and evaluations
    T lambda_most = 0;
    int64_t adjoint_steps = 0;
    T lambda_now = 0;
    Failure misjudged{SUCCESS, 0};  // the first horizon whose loss isn't finite
    double by_proximal = 0, by_length = 0, growth = 0;
};

