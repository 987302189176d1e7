// Loss ½·mean((net(x) − y)²) of a fully connected network on one task: gradient and Hessian-vector product, by a thread block.
//
// Shared memory holds everything: the weights, and the outputs of every layer feature by feature, [width][STRIDE]. Points are
// taken in chunks of as many as fit. The derivatives that are propagated back through a layer overwrite its outputs. moved_x is
// R{x}, the derivative of x along v (Pearlmutter's R-operator); `two` says whether it is computed, too.
#pragma once
#include "block.h"
#include "products.h"
#include "shape.h"

constexpr int whole_fours(int count) { return (count + 3) / 4 * 4; }
// An odd number of fours, so that the same columns of eight consecutive rows are in different banks of shared memory.
constexpr int STRIDE = whole_fours(larger(SUPPORT, QUERY)) / 4 % 2 ? whole_fours(larger(SUPPORT, QUERY))
                                                                   : whole_fours(larger(SUPPORT, QUERY)) + 4;

// Places in shared memory, in numbers from its start. A layer's weight is stored as [outputs][inputs] (straight) and as
// [inputs][outputs] (turned), with rows padded to whole fours, followed by its bias.
constexpr int values_at(int l) {  // the outputs of layer l − 1; for l = 0 the inputs x
    int at = 0;
    for (int n = 0; n < l; ++n) at += WIDTHS[n] * STRIDE;
    return at;
}
constexpr int moved_at(int l) { return values_at(LAYERS + 1) + values_at(l) - WIDTHS[0] * STRIDE; }  // their derivatives along v, l > 0
constexpr int Y = moved_at(LAYERS + 1), WEIGHTS = Y + WIDTHS[LAYERS] * STRIDE;
constexpr int straight_at(int l) {
    int at = 0;
    for (int n = 0; n < l; ++n)
        at += WIDTHS[n + 1] * whole_fours(WIDTHS[n]) + (WIDTHS[n] + 1) * whole_fours(WIDTHS[n + 1]);
    return at;
}
constexpr int turned_at(int l) { return straight_at(l) + WIDTHS[l + 1] * whole_fours(WIDTHS[l]); }
constexpr int bias_at(int l) { return turned_at(l) + WIDTHS[l] * whole_fours(WIDTHS[l + 1]); }
constexpr int ALONG = WEIGHTS + straight_at(LAYERS), HALF_TILES_AT = ALONG + straight_at(LAYERS), NUMBERS = HALF_TILES_AT + HALF_TILES;
constexpr int parameters_at(int l) {  // the first parameter of layer l in a flat vector
    int at = 0;
    for (int n = 0; n < l; ++n) at += (WIDTHS[n] + 1) * WIDTHS[n + 1];
    return at;
}

// Points of a task in chunks of equal length, read from the caller's arrays.
template <class T> struct Points {
    int count, chunks, length;
    const T *x = nullptr, *y = nullptr;  // [count][inputs], [count][outputs]

    Points(Memory&, int64_t points, int64_t, int64_t, int64_t most)
        : count(points), chunks((points + most - 1) / most), length((points + chunks - 1) / chunks) {}
    void fill(const T* all_x, const T* all_y, int64_t task) {
        x = all_x + task * count * WIDTHS[0], y = all_y + task * count * WIDTHS[LAYERS];
    }
};

template <class T> class Network {
  public:
    Network(Memory&, int64_t, const int64_t*, Activation, int64_t, int64_t) {}
    // Clears shared memory; to be called before the first use.
    void start() {
        T* const all = shared_memory<T>();
        each(NUMBERS, [=](int64_t i) { all[i] = 0; });
        loaded_ = nullptr;
    }

    int64_t slots() const { return 1; }

    // Writes `scale` times the gradient at u to out; returns the loss.
    T gradient(const Points<T>& set, const T* u, T* out, int64_t = 0, T scale = 1) {
        return set.length == SUPPORT ? gradient_of<SUPPORT>(set, u, out, scale) : gradient_of<QUERY>(set, u, out, scale);
    }

    // Writes ∇²L(u)·v to out, by Pearlmutter's R-operator.
    OUT_OF_LINE void hvp(const Points<T>& set, const T* u, const T* v, T* out, int64_t = 0, bool = false) {
        pack(u, WEIGHTS), pack(v, ALONG);
        for (int chunk = 0; chunk < set.chunks; ++chunk) {
            if (set.chunks > 1 || loaded_ != set.x) fetch(set, chunk);
#pragma unroll
            for (int l = 0; l < LAYERS; ++l) forward<true, SUPPORT>(l);
            residual<true>(set, chunk);
#pragma unroll
            for (int l = LAYERS - 1; l >= 0; --l) {
                collect<true, SUPPORT>(l, chunk > 0, out, T(1));
                if (l) backward<true, SUPPORT>(l);
            }
        }
    }

  private:
    template <int points> OUT_OF_LINE T gradient_of(const Points<T>& set, const T* u, T* out, T scale) {
        pack(u, WEIGHTS);
        double loss = 0;
        for (int chunk = 0; chunk < set.chunks; ++chunk) {
            if (set.chunks > 1 || loaded_ != set.x) fetch(set, chunk);
#pragma unroll
            for (int l = 0; l < LAYERS; ++l) forward<false, points>(l);
            loss += residual<false>(set, chunk);
#pragma unroll
            for (int l = LAYERS - 1; l >= 0; --l) {
                collect<false, points>(l, chunk > 0, out, scale);
                if (l) backward<false, points>(l);
            }
        }
        return T(loss);
    }

    // Copies flat parameters to shared memory, as the products read them.
    OUT_OF_LINE void pack(const T* from, int to) {
        constexpr int last = parameters_at(LAYERS) - 1;
        T* const all = shared_memory<T>() + to;
#pragma unroll 1
        for (int first = threadIdx.x; first <= last; first += AT_ONCE * THREADS) {
            T found[AT_ONCE];
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q) found[q] = from[smaller(first + q * THREADS, last)];
#pragma unroll
            for (int q = 0; q < AT_ONCE; ++q) place(first + q * THREADS, found[q], all);
        }
        barrier();
    }
    // Stores the n-th parameter; does nothing where n is beyond the last one.
    INLINE void place(int n, T parameter, T* all) {
#pragma unroll
        for (int l = 0; l < LAYERS; ++l) {
            const int in = WIDTHS[l], outputs = WIDTHS[l + 1], i = n - parameters_at(l);
            if (i < 0 || i >= (in + 1) * outputs) continue;
            const int o = i / in, k = i % in;
            if (o >= outputs) all[bias_at(l) + i - in * outputs] = parameter;
            else all[turned_at(l) + k * whole_fours(outputs) + o] = parameter;
            if (l && o < outputs) all[straight_at(l) + o * whole_fours(in) + k] = parameter;
        }
    }
    // Copies a chunk's points to shared memory.
    OUT_OF_LINE void fetch(const Points<T>& set, int chunk) {
        const int first = chunk * set.length, count = smaller(set.length, set.count - first);
        const T *x = set.x + first * WIDTHS[0], *y = set.y + first * WIDTHS[LAYERS];
        loaded_ = x;
        const auto spread = [=](const T* from, T* to, int features) {
            for (int i = threadIdx.x; i < features * STRIDE; i += THREADS) {
                const int f = i / STRIDE, n = i % STRIDE;
                to[i] = n < count ? from[n * features + f] : T(0);
            }
        };
        spread(x, shared_memory<T>(), WIDTHS[0]), spread(y, shared_memory<T>() + Y, WIDTHS[LAYERS]);
        barrier();
    }

    // The outputs of layer l; with `two` also their derivatives along v.
    template <bool two, int points> INLINE void forward(int l) {
        T* const all = shared_memory<T>();
        T *const out = all + values_at(l + 1), *const moved_out = all + moved_at(l + 1);
        const T *const w = all + WEIGHTS, *const v = all + ALONG, *const from = all + values_at(l);
        const bool last = l + 1 == LAYERS;
        const Outer<T> product{WIDTHS[l + 1], whole_fours(points), WIDTHS[l], w + turned_at(l), from,
                               whole_fours(WIDTHS[l + 1]), STRIDE, w + bias_at(l)};
        const Moved<T> along{v + turned_at(l), l ? all + moved_at(l) : nullptr, v + bias_at(l)};
        outer<two>(product, along, [=](int r, int c, Four<T> line, Four<T> moved_line) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (last) break;
                line.v[j] = Sigma::value(line.v[j]);
                if (two) moved_line.v[j] *= Sigma::slope(line.v[j]);
            }
            store(out + r * STRIDE + c, line);
            if (two) store(moved_out + r * STRIDE + c, moved_line);
        });
        barrier();
    }

    // Replaces the network's outputs by the derivatives of the loss with respect to them; returns the chunk's contribution to the
    // loss, or 0 with `two`.
    template <bool two> INLINE double residual(const Points<T>& set, int chunk) {
        T *const out = shared_memory<T>() + values_at(LAYERS), *const moved_out = shared_memory<T>() + moved_at(LAYERS), *const y = shared_memory<T>() + Y;
        const T weight = T(1) / T(set.count * WIDTHS[LAYERS]);
        const int count = smaller(set.length, set.count - chunk * set.length);
        double loss = 0;
        for (int i = threadIdx.x; i < WIDTHS[LAYERS] * STRIDE; i += THREADS) {
            const bool counts = i % STRIDE < count;
            const T error = counts ? out[i] - y[i] : T(0);
            out[i] = error * weight;
            if (two) moved_out[i] = counts ? moved_out[i] * weight : T(0);
            loss += double(error * error * weight);
        }
        if (!two) return joined(loss, Sum{}) / 2;
        barrier();
        return 0;
    }

    // Adds a chunk's contribution to the gradient of layer l, or with `two` to that gradient's derivative along v.
    template <bool two, int points> INLINE void collect(int l, bool more, T* out, T scale) {
        T* const all = shared_memory<T>();
        const int in = WIDTHS[l], rows = WIDTHS[l + 1];
        const T *const delta = all + values_at(l + 1), *const moved_delta = all + moved_at(l + 1), *const right = all + values_at(l);
        const Inner<T> product{rows, in, whole_fours(points) / 4, two ? moved_delta : delta, right,
                               two && l ? delta : nullptr, two && l ? all + moved_at(l) : nullptr, STRIDE};
        T *const weight = out + parameters_at(l), *const bias = weight + in * rows;
        inner(product, all + HALF_TILES_AT, [=](int r, int c, T sum) { weight[r * in + c] = more ? weight[r * in + c] + scale * sum : scale * sum; });
        sums<T>(rows, whole_fours(points) / 4, [=](int r, int q) {
            const Four<T> d = load(product.left + r * STRIDE + 4 * q);
            return (d.v[0] + d.v[1]) + (d.v[2] + d.v[3]);
        }, [=](int r, T sum) { bias[r] = more ? bias[r] + scale * sum : scale * sum; });
        barrier();
    }

    // Replaces the outputs of layer l − 1 by the derivatives of the loss with respect to them, before their activation.
    template <bool two, int points> INLINE void backward(int l) {
        T* const all = shared_memory<T>();
        T *const at = all + values_at(l), *const moved = all + moved_at(l);
        const T *const w = all + WEIGHTS + straight_at(l), *const v = all + ALONG + straight_at(l);
        const Outer<T> product{WIDTHS[l], whole_fours(points), WIDTHS[l + 1], w, all + values_at(l + 1), whole_fours(WIDTHS[l]), STRIDE, nullptr};
        const Moved<T> along{v, all + moved_at(l + 1), nullptr};
        outer<two>(product, along, [=](int r, int c, Four<T> line, Four<T> moved_line) {
            const Four<T> a = load(at + r * STRIDE + c);
            Four<T> m{};
            if (two) m = load(moved + r * STRIDE + c);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const T slope = Sigma::slope(a.v[j]);
                if (two) moved_line.v[j] = moved_line.v[j] * slope + line.v[j] * Sigma::bent(a.v[j], m.v[j]);
                line.v[j] *= slope;
            }
            store(at + r * STRIDE + c, line);
            if (two) store(moved + r * STRIDE + c, moved_line);
        });
        barrier();
    }

    const T* loaded_ = nullptr;
};
