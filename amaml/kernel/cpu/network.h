// Loss ½·mean((net(x) − y)²) of a fully connected network on one task: gradient and Hessian-vector product.
//
// Points are taken in chunks, so that intermediate results stay in the cache. Parameters are one flat vector: each layer's weight
// [outputs][inputs], then its bias. δ is the derivative of the loss with respect to a layer's outputs (before the activation).
// moved_x is R{x}, the derivative of x along v (Pearlmutter's R-operator).
#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "block.h"
#include "products.h"

// The order of an array of points × features in memory: point by point or feature by feature, whichever wastes fewer vector
// lanes.
template <class T> struct Layout {
    int64_t point, feature, size;  // strides of point and feature; numbers in the array, padding to whole vectors included

    Layout(int64_t points, int64_t features) {
        const int64_t by_point = points * whole_vectors<T>(features), by_feature = features * whole_vectors<T>(points);
        // Weight gradients from arrays stored feature by feature need sums across lanes, which cost about a tenth more.
        if (10 * by_point <= 11 * by_feature) point = whole_vectors<T>(features), feature = 1, size = by_point;
        else point = 1, feature = whole_vectors<T>(points), size = by_feature;
    }
    bool by_point() const { return feature == 1; }
    Matrix<T> matrix(T* at) const { return {at, point, feature}; }
    Matrix<const T> matrix(const T* at) const { return {at, point, feature}; }
};

// Points of a task in chunks of equal length; the points that pad the last chunk have weight 0.
template <class T> struct Points {
    int64_t count, inputs, outputs, chunks, length;
    Layout<T> in, out;
    Values<T> x, y, weight;  // [chunk][in.size], [chunk][out.size] twice; weight: 1/(points·outputs)

    // Chunks have at most `most` points.
    Points(Memory&, int64_t points, int64_t inputs, int64_t outputs, int64_t most)
        : count(points), inputs(inputs), outputs(outputs), chunks((points + most - 1) / most),
          length((points + chunks - 1) / chunks), in(length, inputs), out(length, outputs),
          x(chunks * in.size + LARGEST_TILE * (in.point + in.feature)), y(chunks * out.size), weight(chunks * out.size) {
        const std::vector<T> equal(points * outputs, T(1) / T(points * outputs));
        spread(equal.data(), outputs, out, weight);
    }
    // Copies the points of a task from arrays [task][point][feature].
    void fill(const T* all_x, const T* all_y, int64_t task) {
        spread(all_x + task * count * inputs, inputs, in, x);
        spread(all_y + task * count * outputs, outputs, out, y);
    }

  private:
    void spread(const T* from, int64_t features, const Layout<T>& layout, Values<T>& to) const {
        for (int64_t p = 0; p < count; ++p)
            for (int64_t f = 0; f < features; ++f)
                to[p / length * layout.size + p % length * layout.point + f * layout.feature] = *from++;
    }
};

template <class T, class F> inline void by_vectors(int64_t count, F run) {
    for (int64_t p = 0; p < count; p += Simd<T>::lanes) run(p);
}

template <class T> class Network {
  public:
    const int64_t layers;
    int64_t parameters = 0;

    // `longest`: the most points in a chunk. `slots`: for how many states u activations can be kept at once.
    Network(Memory&, int64_t layers, const int64_t* widths, Activation activation, int64_t longest, int64_t slots)
        : layers(layers), widths_(widths, widths + layers + 1), activation_(activation), ones_(longest, 1) {
        const auto array = [=](int64_t width) {  // large enough for both layouts, and for what tiles read past the end
            return std::max((longest + LARGEST_TILE) * whole_vectors<T>(width),
                            (width + LARGEST_TILE) * whole_vectors<T>(longest));
        };
        for (int64_t l = 0; l < layers; ++l) {
            offsets_.push_back(parameters);
            parameters += (widths[l] + 1) * widths[l + 1];
            const int64_t in = whole_vectors<T>(widths[l]), outputs = whole_vectors<T>(widths[l + 1]);
            for (Layers* all : {&at_, &along_, &gradient_}) {
                all->straight.emplace_back((widths[l + 1] + LARGEST_TILE) * in);
                all->turned.emplace_back(widths[l] * outputs);
                all->bias.emplace_back(outputs);
            }
        }
        const auto arrays = [&](std::vector<Values<T>>& to) {
            for (int64_t l = 1; l <= layers; ++l) to.emplace_back(array(widths[l]));
        };
        slots_.resize(slots);
        for (auto& slot : slots_) arrays(slot);
        arrays(pre_), arrays(moved_);
        for (auto& buffer : buffers_) buffer.resize(array(*std::max_element(widths, widths + layers + 1)));
    }

    void start() {}
    int64_t slots() const { return int64_t(slots_.size()); }

    // Writes `scale` times the gradient at u to out; returns the loss.
    T gradient(const Points<T>& set, const T* u, T* out, int64_t slot = 0, T scale = 1) {
        T loss = 0;
        pack(set, u, at_);
        for (int64_t chunk = 0; chunk < set.chunks; ++chunk) {
            T *delta = buffers_[0].data(), *below = buffers_[1].data();
            forward(set, chunk, slot);
            loss += residual(set, chunk, slot, delta);
            for (int64_t l = layers - 1; l >= 0; --l) {
                const T* a = activation(set, chunk, slot, l);
                const auto in = layout(set, l);
                const auto d = layout(set, l + 1).matrix(static_cast<const T*>(delta));
                collect(set, chunk, l, 1, {{d.turned(), in.matrix(a)}});
                if (!l) break;
                backward_product(set, l, in.matrix(below), 1, {{d, backwards(set, at_, l)}});
                with<T>(activation_, [=](auto f) {
                    by_vectors<T>(in.size, [=](int64_t p) { store(below + p, load(below + p) * f.slope(load(a + p))); });
                });
                std::swap(delta, below);
            }
        }
        unpack(set, out);
        if (scale != 1) fill(parameters, out, [=](int64_t i) { return scale * out[i]; });
        return loss;
    }

    // Writes ∇²L(u)·v to out, by Pearlmutter's R-operator. `known`: the slot already holds the activations at this u.
    void hvp(const Points<T>& set, const T* u, const T* v, T* out, int64_t slot = 0, bool known = false) {
        pack(set, u, at_), pack(set, v, along_);
        for (int64_t chunk = 0; chunk < set.chunks; ++chunk) {
            T *delta = buffers_[0].data(), *below = buffers_[1].data();
            T *moved_delta = buffers_[2].data(), *moved_below = buffers_[3].data();
            if (!known || set.chunks > 1) forward(set, chunk, slot);
            tangents(set, chunk, slot);
            residual(set, chunk, slot, delta);
            by_vectors<T>(set.out.size, [=, out = moved_.back().data(), weight = weights(set, chunk)](int64_t p) {
                store(moved_delta + p, load(out + p) * load(weight + p));
            });
            for (int64_t l = layers - 1; l >= 0; --l) {
                const T* a = activation(set, chunk, slot, l);
                const auto in = layout(set, l), outputs = layout(set, l + 1);
                const auto d = outputs.matrix(static_cast<const T*>(delta));
                const auto moved_d = outputs.matrix(static_cast<const T*>(moved_delta));
                const auto moved = in.matrix(l ? static_cast<const T*>(moved_[l - 1].data()) : nullptr);
                collect(set, chunk, l, l ? 2 : 1, {{moved_d.turned(), in.matrix(a)}, {d.turned(), moved}});
                if (!l) break;
                const auto w = backwards(set, at_, l), moved_w = backwards(set, along_, l);
                backward_product(set, l, in.matrix(below), 1, {{d, w}});
                backward_product(set, l, in.matrix(moved_below), 2, {{moved_d, w}, {d, moved_w}});
                with<T>(activation_, [=, pre = pre_[l - 1].data()](auto f) {
                    by_vectors<T>(in.size, [=](int64_t p) {
                        const auto at = load(a + p), slope = f.slope(at), one = load(below + p);
                        const auto bent = one * f.bend(at, slope) * load(pre + p);
                        store(moved_below + p, load(moved_below + p) * slope + bent);
                        store(below + p, one * slope);
                    });
                });
                std::swap(delta, below), std::swap(moved_delta, moved_below);
            }
        }
        unpack(set, out);
    }

  private:
    // Parameters, or their gradient, as the products need them: the flat vector; and each weight as [outputs][inputs] (straight)
    // or as [inputs][outputs] (turned), with rows padded to whole vectors.
    struct Layers {
        const T* flat;
        std::vector<Values<T>> straight, turned, bias;
    };
    Matrix<T> straight(Layers& of, int64_t l) const { return {of.straight[l].data(), whole_vectors<T>(widths_[l]), 1}; }
    Matrix<T> turned(Layers& of, int64_t l) const { return {of.turned[l].data(), 1, whole_vectors<T>(widths_[l + 1])}; }
    bool by_point(const Points<T>& set, int64_t l) const { return layout(set, l).by_point(); }

    void pack(const Points<T>& set, const T* from, Layers& to) {
        to.flat = from;
        for (int64_t l = 0; l < layers; ++l) {
            const int64_t in = widths_[l], outputs = widths_[l + 1];
            const T* w = from + offsets_[l];
            if (by_point(set, l + 1)) transpose<T>({w, in, 1}, outputs, in, turned(to, l).turned());
            if (by_point(set, l) && (l || !by_point(set, l + 1))) copy_rows<T>({w, in, 1}, outputs, in, straight(to, l));
            std::copy_n(w + outputs * in, outputs, to.bias[l].data());
        }
    }
    void unpack(const Points<T>& set, T* out) {
        for (int64_t l = 0; l < layers; ++l) {
            const int64_t in = widths_[l], outputs = widths_[l + 1];
            T* w = out + offsets_[l];
            if (sums_turned(set, l)) transpose<T>(turned(gradient_, l).turned(), in, outputs, {w, in, 1});
            else copy_rows<T>(straight(gradient_, l), outputs, in, {w, in, 1});
            std::copy_n(gradient_.bias[l].data(), outputs, w + outputs * in);
        }
    }
    // Whether the weight gradient of layer l is computed as [inputs][outputs].
    bool sums_turned(const Points<T>& set, int64_t l) const { return !by_point(set, l) && by_point(set, l + 1); }
    // The weight of layer l: [inputs][outputs] for the forward product, [outputs][inputs] for the backward product.
    Matrix<const T> forwards(const Points<T>& set, Layers& of, int64_t l) {
        return (by_point(set, l + 1) ? turned(of, l) : backwards(set, of, l)).turned();
    }
    Matrix<const T> backwards(const Points<T>& set, Layers& of, int64_t l) {
        if (by_point(set, l)) return straight(of, l);
        if (by_point(set, l + 1)) return turned(of, l);
        return {of.flat + offsets_[l], widths_[l], 1};
    }
    Layout<T> layout(const Points<T>& set, int64_t l) const { return {set.length, widths_[l]}; }

    // The output of layer l − 1; for l = 0 the inputs x.
    const T* activation(const Points<T>& set, int64_t chunk, int64_t slot, int64_t l) const {
        return l ? slots_[slot][l - 1].data() : set.x.data() + chunk * set.in.size;
    }
    const T* weights(const Points<T>& set, int64_t chunk) const { return set.weight.data() + chunk * set.out.size; }

    // Adds a chunk's contribution to the gradient of layer l: δᵀ·a to that of the weight, and the sums of the first δ to that of
    // the bias.
    void collect(const Points<T>& set, int64_t chunk, int64_t l, int count, const Factors<T> (&terms)[2]) {
        const int64_t outputs = widths_[l + 1];
        const auto weight = sums_turned(set, l) ? turned(gradient_, l) : straight(gradient_, l);
        const Matrix<const T> start = chunk ? Matrix<const T>(weight) : none;
        multiply<T>({outputs, widths_[l], set.length, weight, start, count, {terms[0], terms[1]}});
        const Matrix<T> bias{gradient_.bias[l].data(), 0, 1};
        if (!chunk) std::fill_n(bias.at, outputs, T(0));
        const auto& delta = terms[0].left;
        if (delta.row == 1) multiply<T>({1, outputs, set.length, bias, bias, 1, {{{ones_.data(), 0, 1}, delta.turned()}}});
        else add_row_sums(outputs, set.length, delta, bias.at);
    }

    // The derivative of the loss with respect to the inputs of layer l, from δ of its outputs.
    void backward_product(const Points<T>& set, int64_t l, const Matrix<T>& out, int count, const Factors<T> (&terms)[2]) {
        multiply<T>({set.length, widths_[l], widths_[l + 1], out, none, count, {terms[0], terms[1]}});
    }

    // The outputs of layer l before its activation, from its inputs.
    void forward_product(const Points<T>& set, int64_t l, T* out, const T* bias, int count, const Factors<T> (&terms)[2]) {
        const auto to = layout(set, l + 1).matrix(out);
        multiply<T>({set.length, widths_[l + 1], widths_[l], to, {bias, 0, 1}, count, {terms[0], terms[1]}});
    }

    void forward(const Points<T>& set, int64_t chunk, int64_t slot) {
        for (int64_t l = 0; l < layers; ++l) {
            T* z = slots_[slot][l].data();
            const auto a = layout(set, l).matrix(activation(set, chunk, slot, l));
            forward_product(set, l, z, at_.bias[l].data(), 1, {{a, forwards(set, at_, l)}});
            if (l + 1 == layers) break;
            with<T>(activation_, [=, size = layout(set, l + 1).size](auto f) {
                by_vectors<T>(size, [=](int64_t p) { store(z + p, f.value(load(z + p))); });
            });
        }
    }

    // Writes δ of the output layer; returns the chunk's contribution to the loss.
    T residual(const Points<T>& set, int64_t chunk, int64_t slot, T* delta) const {
        const T *out = slots_[slot].back().data(), *y = set.y.data() + chunk * set.out.size, *weight = weights(set, chunk);
        Vec<T> loss{};
        by_vectors<T>(set.out.size, [&](int64_t p) {
            const Vec<T> w = load(weight + p), error = w != Vec<T>{} ? load(out + p) - load(y + p) : Vec<T>{};
            store(delta + p, error * w);
            loss += error * error * w;
        });
        T total = 0;
        for (int q = 0; q < Simd<T>::lanes; ++q) total += loss[q];
        return total / 2;
    }

    // The derivatives along v of every layer's outputs before (pre) and after its activation (moved).
    void tangents(const Points<T>& set, int64_t chunk, int64_t slot) {
        for (int64_t l = 0; l < layers; ++l) {
            const auto in = layout(set, l);
            const auto a = in.matrix(activation(set, chunk, slot, l));
            const auto moved_a = in.matrix(l ? static_cast<const T*>(moved_[l - 1].data()) : nullptr);
            T *moved = moved_[l].data(), *pre = l + 1 < layers ? pre_[l].data() : moved;
            const Factors<T> terms[2] = {{a, forwards(set, along_, l)}, {moved_a, forwards(set, at_, l)}};
            forward_product(set, l, pre, along_.bias[l].data(), l ? 2 : 1, terms);
            if (l + 1 == layers) break;
            with<T>(activation_, [=, value = activation(set, chunk, slot, l + 1), size = layout(set, l + 1).size](auto f) {
                by_vectors<T>(size, [=](int64_t p) { store(moved + p, load(pre + p) * f.slope(load(value + p))); });
            });
        }
    }

    static constexpr T zero = 0;
    static constexpr Matrix<const T> none{&zero, 0, 0};
    Values<int64_t> widths_, offsets_;  // offsets_: the first parameter of each layer
    Activation activation_;
    Values<T> ones_;
    Layers at_, along_, gradient_;                // u, v and the sum over chunks
    std::vector<std::vector<Values<T>>> slots_;  // [slot][layer][points × width, as its layout says]
    std::vector<Values<T>> pre_, moved_;         // [layer][…]
    Values<T> buffers_[4];
};
