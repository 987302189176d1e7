// Loss ½·mean((net(x) − y)²) of a fully connected network on one task: gradient and Hessian-vector product.
//
// Arrays are feature-major, [width][points], and points come in chunks of a few vectors, so that everything stays in
// cache whatever their number. Parameters lie flat: a layer's weight [outputs][inputs], then its bias.
#pragma once
#include <algorithm>
#include <cstddef>
#include <new>
#include <utility>
#include <vector>

#include "vectors.h"

constexpr int CHUNK_POINTS = 128;

// Memory that starts on a cache line: a vector across two of them costs two loads.
template <class T> struct Aligned {
    using value_type = T;
    static constexpr std::align_val_t line{64};
    Aligned() = default;
    template <class U> Aligned(const Aligned<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), line)); }
    void deallocate(T* at, size_t) { ::operator delete(at, line); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
template <class T> using Values = std::vector<T, Aligned<T>>;

// Points of a task, chunk by chunk; those that pad the last vectors weigh nothing.
template <class T> struct Points {
    int64_t count, inputs, outputs;
    int64_t chunks, length;  // length: points in a chunk
    Values<T> x, y, weight;  // [chunk][feature][point]; weight: 1/(points·outputs)

    Points(int64_t points, int64_t in, int64_t out) : count(points), inputs(in), outputs(out) {
        int64_t vectors = (points + Simd<T>::lanes - 1) / Simd<T>::lanes;
        constexpr int64_t most = CHUNK_POINTS / Simd<T>::lanes;
        chunks = (vectors + most - 1) / most;
        length = (vectors + chunks - 1) / chunks * Simd<T>::lanes;
        x.resize(chunks * length * in), y.resize(chunks * length * out), weight.resize(chunks * length);
        std::fill_n(weight.begin(), points, T(1) / T(points * out));
    }
    // Takes over those of the task'th task from [task][point][feature].
    void fill(const T* all_x, const T* all_y, int64_t task) {
        spread(all_x, inputs, task, x.data());
        spread(all_y, outputs, task, y.data());
    }
    Vec<T> weights(int64_t chunk, int64_t p) const { return load(weight.data() + chunk * length + p % length); }

  private:
    void spread(const T* from, int64_t features, int64_t task, T* to) const {
        from += task * count * features;
        for (int64_t p = 0; p < count; ++p)
            for (int64_t f = 0; f < features; ++f)
                to[(p / length * features + f) * length + p % length] = from[p * features + f];
    }
};

// One of the terms of a product: weight[r·row + k·column] times in[k][·].
template <class T> struct Term {
    const T* weight;
    int64_t row, column;
    const T* in;
};

template <class T, int rows, int columns>
inline void product_tile(const Term<T>* terms, int count, int64_t inner, int64_t length, const T* bias, T* out) {
    using V = Vec<T>;
    constexpr int lanes = Simd<T>::lanes;
    V sum[rows * columns];
#pragma GCC unroll 16
    for (int q = 0; q < rows * columns; ++q) sum[q] = V{} + (bias ? bias[q / columns] : T(0));
    for (int t = 0; t < count; ++t) {
        const T *weight = terms[t].weight, *in = terms[t].in;
        const int64_t row = terms[t].row, column = terms[t].column;
        for (int64_t k = 0; k < inner; ++k, weight += column, in += length) {
            V x[columns];
#pragma GCC unroll 4
            for (int c = 0; c < columns; ++c) x[c] = load(in + c * lanes);
#pragma GCC unroll 16
            for (int q = 0; q < rows * columns; ++q) sum[q] += weight[q / columns * row] * x[q % columns];
        }
    }
#pragma GCC unroll 16
    for (int q = 0; q < rows * columns; ++q) store(out + q / columns * length + q % columns * lanes, sum[q]);
}

// Rows are taken `rows` at a time, the rest in halves of it.
template <class T, int rows, int columns>
void product_column(Term<T> (&terms)[2], int count, int64_t n, int64_t inner, int64_t length, const T* bias, T* out) {
    for (; n >= rows; n -= rows, out += rows * length) {
        product_tile<T, rows, columns>(terms, count, inner, length, bias, out);
        for (int t = 0; t < count; ++t) terms[t].weight += rows * terms[t].row;
        if (bias) bias += rows;
    }
    if constexpr (rows > 1)
        if (n) product_column<T, rows / 2, columns>(terms, count, n, inner, length, bias, out);
}

// out[r][·] = bias[r] + Σ over terms and k < inner of weight[r, k]·in[k][·], for r < n.
template <class T>
void product(std::initializer_list<Term<T>> sum, int64_t n, int64_t inner, int64_t length, const T* bias, T* out) {
    constexpr int lanes = Simd<T>::lanes;
    const int count = int(sum.size());
    for (int64_t at = 0; at < length;) {
        Term<T> terms[2];
        std::copy(sum.begin(), sum.end(), terms);
        for (int t = 0; t < count; ++t) terms[t].in += at;
        const int64_t left = (length - at) / lanes;
        const int64_t columns = left == 5 || left == 6 ? 3 : std::min<int64_t>(left, 4);
        switch (columns) {
            case 4: product_column<T, 4, 4>(terms, count, n, inner, length, bias, out + at); break;
            case 3: product_column<T, 4, 3>(terms, count, n, inner, length, bias, out + at); break;
            case 2: product_column<T, 8, 2>(terms, count, n, inner, length, bias, out + at); break;
            default: product_column<T, 8, 1>(terms, count, n, inner, length, bias, out + at);
        }
        at += columns * lanes;
    }
}

template <class T> struct Pair {
    const T *left, *right;
};

// out[i][j] += Σ over pairs and points of left[i][·]·right[j][·], a tile of height × width sums at a time.
template <class T, int height, int width>
void outer_tiles(std::initializer_list<Pair<T>> pairs, int64_t rows, int64_t columns, int64_t length, T* out) {
    constexpr int lanes = Simd<T>::lanes, size = height * width;
    for (int64_t i = 0; i < rows; i += height)
        for (int64_t j = 0; j < columns; j += width) {
            Vec<T> sum[size] = {};
            for (const Pair<T>& pair : pairs) {
                const T *left[height], *right[width];  // beyond the last row: that row again, its sums unused
                for (int q = 0; q < height; ++q) left[q] = pair.left + std::min(i + q, rows - 1) * length;
                for (int q = 0; q < width; ++q) right[q] = pair.right + std::min(j + q, columns - 1) * length;
                for (int64_t p = 0; p < length; p += lanes) {
                    Vec<T> a[height], b[width];
#pragma GCC unroll 16
                    for (int q = 0; q < height; ++q) a[q] = load(left[q] + p);
#pragma GCC unroll 16
                    for (int q = 0; q < width; ++q) b[q] = load(right[q] + p);
#pragma GCC unroll 16
                    for (int q = 0; q < size; ++q) sum[q] += a[q / width] * b[q % width];
                }
            }
            T sums[size];
            for (int q = 0; q < size; q += lanes) sum_lanes<T>(sum + q), store(sums + q, sum[q]);
            for (int64_t r = 0; r < std::min<int64_t>(height, rows - i); ++r)
                for (int64_t c = 0; c < std::min<int64_t>(width, columns - j); ++c)
                    out[(i + r) * columns + j + c] += sums[r * width + c];
        }
}
template <class T>
void outer(std::initializer_list<Pair<T>> pairs, int64_t rows, int64_t columns, int64_t length, T* out) {
    if (columns == 1) outer_tiles<T, 16, 1>(pairs, rows, columns, length, out);
    else if (rows == 1) outer_tiles<T, 1, 16>(pairs, rows, columns, length, out);
    else outer_tiles<T, 4, 4>(pairs, rows, columns, length, out);
}

// out[i] += Σ over points of left[i][·].
template <class T> void row_sums(const T* left, int64_t rows, int64_t length, T* out) {
    constexpr int lanes = Simd<T>::lanes;
    for (int64_t i = 0; i < rows; i += lanes) {
        Vec<T> sum[lanes] = {};
        const int64_t height = std::min<int64_t>(lanes, rows - i);
        for (int64_t r = 0; r < height; ++r)
            for (int64_t p = 0; p < length; p += lanes) sum[r] += load(left + (i + r) * length + p);
        sum_lanes<T>(sum);
        for (int64_t r = 0; r < height; ++r) out[i + r] += sum[0][r];
    }
}

template <class T, class F> inline void each(int64_t count, F run) {
    for (int64_t p = 0; p < count; p += Simd<T>::lanes) run(p);
}

template <class T> class Network {
  public:
    const int64_t layers;
    int64_t parameters = 0;

    // `slots`: at how many points u activations can be remembered at once.
    Network(int64_t layers, const int64_t* widths, Activation activation, int64_t longest, int64_t slots)
        : layers(layers), widths_(widths, widths + layers + 1), activation_(activation) {
        const int64_t widest = *std::max_element(widths, widths + layers + 1);
        for (int64_t l = 0; l < layers; ++l) {
            weights_.push_back(parameters);
            parameters += (widths[l] + 1) * widths[l + 1];
        }
        const auto arrays = [&](std::vector<Values<T>>& to) {
            for (int64_t l = 1; l <= layers; ++l) to.emplace_back(widths[l] * longest);
        };
        slots_.resize(slots);
        for (auto& slot : slots_) arrays(slot);
        arrays(pre_), arrays(moved_);
        for (auto& buffer : buffers_) buffer.resize(widest * longest);
    }

    int64_t slots() const { return int64_t(slots_.size()); }

    // Gradient at u into out; returns the loss.
    T gradient(const Points<T>& set, const T* u, T* out, int64_t slot = 0) {
        T loss = 0;
        std::fill_n(out, parameters, T(0));
        for (int64_t chunk = 0; chunk < set.chunks; ++chunk) {
            T *delta = buffers_[0].data(), *pulled = buffers_[1].data();
            forward(set, chunk, u, slot);
            loss += residual(set, chunk, slot, delta);
            for (int64_t l = layers - 1; l >= 0; --l) {
                const int64_t in = widths_[l], outputs = widths_[l + 1], n = set.length;
                const T* a = activation(set, chunk, slot, l);
                outer<T>({{delta, a}}, outputs, in, n, out + weights_[l]);
                row_sums(delta, outputs, n, out + weights_[l] + in * outputs);
                if (!l) break;
                product<T>({{u + weights_[l], 1, in, delta}}, in, outputs, n, nullptr, pulled);
                with<T>(activation_, [=](auto f) {
                    each<T>(in * n, [=](int64_t p) { store(pulled + p, load(pulled + p) * f.slope(load(a + p))); });
                });
                std::swap(delta, pulled);
            }
        }
        return loss;
    }

    // ∇²L(u)·v into out, by Pearlmutter's R-operator. `known`: the slot holds the activations at this u.
    void hvp(const Points<T>& set, const T* u, const T* v, T* out, int64_t slot = 0, bool known = false) {
        std::fill_n(out, parameters, T(0));
        for (int64_t chunk = 0; chunk < set.chunks; ++chunk) {
            T *delta = buffers_[0].data(), *pulled = buffers_[1].data();
            T *moved_delta = buffers_[2].data(), *moved_pulled = buffers_[3].data();
            if (!known || set.chunks > 1) forward(set, chunk, u, slot);
            tangents(set, chunk, u, v, slot);
            residual(set, chunk, slot, delta);
            each<T>(set.outputs * set.length, [&, moved = moved_.back().data()](int64_t p) {
                store(moved_delta + p, load(moved + p) * set.weights(chunk, p));
            });
            for (int64_t l = layers - 1; l >= 0; --l) {
                const int64_t in = widths_[l], outputs = widths_[l + 1], n = set.length;
                const T *a = activation(set, chunk, slot, l), *w = u + weights_[l], *moved_w = v + weights_[l];
                row_sums(moved_delta, outputs, n, out + weights_[l] + in * outputs);
                if (!l) {
                    outer<T>({{moved_delta, a}}, outputs, in, n, out);
                    break;
                }
                outer<T>({{moved_delta, a}, {delta, moved_[l - 1].data()}}, outputs, in, n, out + weights_[l]);
                product<T>({{w, 1, in, delta}}, in, outputs, n, nullptr, pulled);
                product<T>({{w, 1, in, moved_delta}, {moved_w, 1, in, delta}}, in, outputs, n, nullptr, moved_pulled);
                with<T>(activation_, [=, pre = pre_[l - 1].data()](auto f) {
                    each<T>(in * n, [=](int64_t p) {
                        const auto at = load(a + p), slope = f.slope(at), pull = load(pulled + p);
                        const auto bent = pull * f.bend(at, slope) * load(pre + p);
                        store(moved_pulled + p, load(moved_pulled + p) * slope + bent);
                        store(pulled + p, pull * slope);
                    });
                });
                std::swap(delta, pulled), std::swap(moved_delta, moved_pulled);
            }
        }
    }

  private:
    // Output of layer l − 1, or the inputs for l = 0.
    const T* activation(const Points<T>& set, int64_t chunk, int64_t slot, int64_t l) const {
        return l ? slots_[slot][l - 1].data() : set.x.data() + chunk * set.inputs * set.length;
    }

    void forward(const Points<T>& set, int64_t chunk, const T* u, int64_t slot) {
        for (int64_t l = 0; l < layers; ++l) {
            const int64_t in = widths_[l], outputs = widths_[l + 1];
            const T *w = u + weights_[l], *a = activation(set, chunk, slot, l);
            T* z = slots_[slot][l].data();
            product<T>({{w, in, 1, a}}, outputs, in, set.length, w + in * outputs, z);
            if (l + 1 == layers) break;
            with<T>(activation_, [&](auto f) {
                each<T>(outputs * set.length, [=](int64_t p) { store(z + p, f.value(load(z + p))); });
            });
        }
    }

    // δ of the output layer; returns the chunk's part of the loss.
    T residual(const Points<T>& set, int64_t chunk, int64_t slot, T* delta) const {
        const T *out = slots_[slot].back().data(), *y = set.y.data() + chunk * set.outputs * set.length;
        Vec<T> loss{};
        each<T>(set.outputs * set.length, [&](int64_t p) {
            const auto error = load(out + p) - load(y + p), weighted = error * set.weights(chunk, p);
            store(delta + p, weighted);
            loss += error * weighted;
        });
        T total = 0;
        for (int q = 0; q < Simd<T>::lanes; ++q) total += loss[q];
        return total / 2;
    }

    // How every layer's input to its activation (pre) and output (moved) move along v.
    void tangents(const Points<T>& set, int64_t chunk, const T* u, const T* v, int64_t slot) {
        for (int64_t l = 0; l < layers; ++l) {
            const int64_t in = widths_[l], outputs = widths_[l + 1], n = set.length;
            const T *w = u + weights_[l], *moved_w = v + weights_[l], *bias = moved_w + in * outputs;
            const T* a = activation(set, chunk, slot, l);
            T *moved = moved_[l].data(), *pre = l + 1 < layers ? pre_[l].data() : moved;
            if (l) product<T>({{moved_w, in, 1, a}, {w, in, 1, moved_[l - 1].data()}}, outputs, in, n, bias, pre);
            else product<T>({{moved_w, in, 1, a}}, outputs, in, n, bias, pre);
            if (l + 1 == layers) break;
            with<T>(activation_, [=, out = activation(set, chunk, slot, l + 1)](auto f) {
                each<T>(outputs * n, [=](int64_t p) { store(moved + p, load(pre + p) * f.slope(load(out + p))); });
            });
        }
    }

    Values<int64_t> widths_, weights_;  // weights_: where each layer's parameters begin
    Activation activation_;
    std::vector<std::vector<Values<T>>> slots_;  // [slot][layer][width][point]
    std::vector<Values<T>> pre_, moved_;         // [layer][width][point]
    Values<T> buffers_[4];
};
