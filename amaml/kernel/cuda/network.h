// Loss ½·mean((net(x) − y)²) of a fully connected network on one task: gradient and Hessian-vector product, by a thread block.
//
// Everything lies in the multiprocessor's own memory: weights, and for every layer its outputs feature by feature, [width][stride].
// Points come in chunks of as many as fit. What comes back through a layer overwrites its outputs.
#pragma once
#include "activations.h"
#include "block.h"
#include "products.h"

INLINE int whole_fours(int64_t count) { return int(count + 3) / 4 * 4; }
// An odd number of fours: then the same columns of eight rows one after another lie in different banks of the memory.
INLINE int stride_of(int64_t points) { return whole_fours(points) / 4 % 2 ? whole_fours(points) : whole_fours(points) + 4; }

// Points of a task in chunks of equal length, where they came from.
template <class T> struct Points {
    int count, inputs, outputs, chunks, length;
    const T *x = nullptr, *y = nullptr;  // [count][inputs], [count][outputs]

    Points(Memory&, int64_t points, int64_t inputs, int64_t outputs, int64_t most)
        : count(points), inputs(inputs), outputs(outputs), chunks((points + most - 1) / most), length((points + chunks - 1) / chunks) {}
    void fill(const T* all_x, const T* all_y, int64_t task) {
        x = all_x + task * count * inputs, y = all_y + task * count * outputs;
    }
};

// Sigma: the activation that the kernel is compiled for.
template <class T> class Network {
  public:
    using Sigma = AMAML_ACTIVATION;
    Network(Memory& memory, int64_t layers, const int64_t* widths, Activation, int64_t longest, int64_t)
        : layers_(layers), stride_(stride_of(longest)), widths_(widths) {
        int64_t features = 0, along = 0, weights = 0;
        for (int l = 0; l <= layers_; ++l) features += widths[l], along += l ? widths[l] : 0;
        for (int l = 0; l < layers_; ++l) weights += layer_size(l);
        values_ = memory.take_near<T>(features * stride_), moved_ = memory.take_near<T>(along * stride_);
        y_ = memory.take_near<T>(widths[layers_] * stride_), ones_ = memory.take_near<T>(stride_), zeros_ = memory.take_near<T>(stride_);
        weights_ = memory.take_near<T>(weights), along_ = memory.take_near<T>(weights), used_ = memory.near() / sizeof(T);
    }
    // Before the first use.
    void start() {
        each(used_, [=](int64_t i) { values_[i] = 0; });
        each(stride_, [=](int64_t i) { ones_[i] = 1; });
        loaded_ = nullptr;
    }

    int64_t slots() const { return 1; }

    // Gradient at u into out; returns the loss.
    OUT_OF_LINE T gradient(const Points<T>& set, const T* u, T* out, int64_t = 0) {
        pack(u, weights_);
        double loss = 0;
        for (int chunk = 0; chunk < set.chunks; ++chunk) {
            fetch(set, chunk);
            for (int l = 0; l < layers_; ++l) forward<false>(set, l);
            loss += residual<false>(set, chunk);
            for (int l = layers_ - 1; l >= 0; --l) {
                collect<false>(set, l, chunk > 0, out);
                if (l) pull<false>(set, l);
            }
        }
        return T(loss);
    }

    // ∇²L(u)·v into out, by Pearlmutter's R-operator.
    OUT_OF_LINE void hvp(const Points<T>& set, const T* u, const T* v, T* out, int64_t = 0, bool = false) {
        pack(u, weights_), pack(v, along_);
        for (int chunk = 0; chunk < set.chunks; ++chunk) {
            fetch(set, chunk);
            for (int l = 0; l < layers_; ++l) forward<true>(set, l);
            residual<true>(set, chunk);
            for (int l = layers_ - 1; l >= 0; --l) {
                collect<true>(set, l, chunk > 0, out);
                if (l) pull<true>(set, l);
            }
        }
    }

  private:
    // A layer's weight as [outputs][inputs] (straight) and as [inputs][outputs] (turned), rows of whole fours, and its bias.
    struct Layer {
        T *straight, *turned, *bias;
        int in, out;
    };
    int layer_size(int l) const {
        const int in = int(widths_[l]), out = int(widths_[l + 1]);
        return out * whole_fours(in) + in * whole_fours(out) + whole_fours(out);
    }
    Layer layer(T* of, int l) const {
        for (int n = 0; n < l; ++n) of += layer_size(n);
        const int in = int(widths_[l]), out = int(widths_[l + 1]);
        T *turned = of + out * whole_fours(in), *bias = turned + in * whole_fours(out);
        return {of, turned, bias, in, out};
    }
    // The outputs of layer l − 1, x for l = 0, and how they move along v, which x doesn't.
    T* values(int l) const {
        T* at = values_;
        for (int n = 0; n < l; ++n) at += widths_[n] * stride_;
        return at;
    }
    T* moved(int l) const {
        if (!l) return nullptr;
        T* at = moved_;
        for (int n = 1; n < l; ++n) at += widths_[n] * stride_;
        return at;
    }
    int columns(const Points<T>& set) const { return whole_fours(set.length); }

    OUT_OF_LINE void pack(const T* from, T* to) {
        for (int l = 0; l < layers_; ++l) {
            const Layer w = layer(to, l);
            for (int i = threadIdx.x; i < w.in * w.out; i += THREADS) {
                const int o = i / w.in, k = i - o * w.in;
                const T weight = from[i];
                w.straight[o * whole_fours(w.in) + k] = weight, w.turned[k * whole_fours(w.out) + o] = weight;
            }
            from += w.in * w.out;
            for (int i = threadIdx.x; i < w.out; i += THREADS) w.bias[i] = from[i];
            from += w.out;
        }
        barrier();
    }
    // Brings a chunk's points, unless they are here.
    OUT_OF_LINE void fetch(const Points<T>& set, int chunk) {
        const int first = chunk * set.length, count = smaller(set.length, set.count - first);
        const T *x = set.x + first * set.inputs, *y = set.y + first * set.outputs;
        if (loaded_ == x) return;
        loaded_ = x;
        T* const to = values(0);
        for (int i = threadIdx.x; i < set.inputs * stride_; i += THREADS) {
            const int f = i / stride_, p = i - f * stride_;
            to[i] = p < count ? x[p * set.inputs + f] : T(0);
        }
        for (int i = threadIdx.x; i < set.outputs * stride_; i += THREADS) {
            const int f = i / stride_, p = i - f * stride_;
            y_[i] = p < count ? y[p * set.outputs + f] : T(0);
        }
        barrier();
    }

    // The outputs of layer l, with `two` also how they move along v.
    template <bool two> void forward(const Points<T>& set, int l) {
        const Layer w = layer(weights_, l), v = layer(along_, l);
        T *const out = values(l + 1), *const moved_out = moved(l + 1);
        const int stride = stride_;
        const Outer<T> product{w.out, columns(set), w.in, w.turned, values(l), whole_fours(w.out), stride, w.bias};
        const Moved<T> along{v.turned, moved(l), v.bias};
        const bool last = l + 1 == layers_;
        outer<two>(product, along, [=](int r, int c, Four<T> line, Four<T> moved_line) {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (last) break;
                line.v[j] = Sigma::value(line.v[j]);
                if (two) moved_line.v[j] *= Sigma::slope(line.v[j]);
            }
            store(out + r * stride + c, line);
            if (two) store(moved_out + r * stride + c, moved_line);
        });
        barrier();
    }

    // How the loss depends on the network's outputs, in their place; returns the chunk's part of the loss, not with `two`.
    template <bool two> double residual(const Points<T>& set, int chunk) {
        T *const out = values(layers_), *const moved_out = moved(layers_);
        const T weight = T(1) / T(set.count * set.outputs);
        const int count = smaller(set.length, set.count - chunk * set.length), stride = stride_;
        double loss = 0;
        for (int i = threadIdx.x; i < set.outputs * stride; i += THREADS) {
            const bool counts = i % stride < count;
            const T error = counts ? out[i] - y_[i] : T(0);
            out[i] = error * weight;
            if (two) moved_out[i] = counts ? moved_out[i] * weight : T(0);
            loss += double(error * error * weight);
        }
        if (two) barrier();
        return two ? 0 : joined(loss, Sum{}) / 2;
    }

    // The gradient of layer l, with `two` its own along v, from how the loss depends on its outputs.
    template <bool two> void collect(const Points<T>& set, int l, bool more, T* out) {
        for (int n = 0; n < l; ++n) out += (widths_[n] + 1) * widths_[n + 1];
        const int in = int(widths_[l]), rows = int(widths_[l + 1]);
        const T *const delta = values(l + 1), *const right = values(l);
        Inner<T> product{rows, in, columns(set), delta, right, nullptr, nullptr, stride_, ones_, zeros_};
        if (two) {
            product.left = moved(l + 1);
            if (l) product.left_two = delta, product.right_two = moved(l);
        }
        inner(product, [=](int r, int c, T sum) {
            T* const to = out + (c < in ? r * in + c : rows * in + r);
            *to = more ? *to + sum : sum;
        });
        barrier();
    }

    // How the loss depends on the inputs of layer l's activation, in place of the outputs of layer l − 1.
    template <bool two> void pull(const Points<T>& set, int l) {
        const Layer w = layer(weights_, l), v = layer(along_, l);
        T *const at = values(l), *const moved_at = moved(l);
        const int stride = stride_;
        const Outer<T> product{w.in, columns(set), w.out, w.straight, values(l + 1), whole_fours(w.in), stride, nullptr};
        const Moved<T> along{v.straight, moved(l + 1), nullptr};
        outer<two>(product, along, [=](int r, int c, Four<T> line, Four<T> moved_line) {
            const Four<T> a = load(at + r * stride + c);
            Four<T> m{};
            if (two) m = load(moved_at + r * stride + c);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const T slope = Sigma::slope(a.v[j]);
                if (two) moved_line.v[j] = moved_line.v[j] * slope + line.v[j] * Sigma::bent(a.v[j], m.v[j]);
                line.v[j] *= slope;
            }
            store(at + r * stride + c, line);
            if (two) store(moved_at + r * stride + c, moved_line);
        });
        barrier();
    }

    int layers_, stride_;
    int64_t used_ = 0;  // numbers of the multiprocessor's memory
    const int64_t* widths_;
    T *values_, *moved_, *y_, *ones_, *zeros_, *weights_, *along_;
    const T* loaded_ = nullptr;
};
