// Activations on a GPU: value is σ(z), slope is σ' from a = σ(z), bent is σ''·R{z} from a and R{a} = σ'·R{z}, where R{z} is the
// derivative of z along v. NaN stays NaN.
#pragma once

struct Tanh {
    template <class T> static T value(T z) { return tanh(z); }
    template <class T> static T slope(T a) { return 1 - a * a; }
    template <class T> static T bent(T a, T moved) { return -2 * a * moved; }
};
struct Sigmoid {
    template <class T> static T value(T z) {
        const T small = exp(z < 0 ? z : -z);
        return (z < 0 ? small : T(1)) / (1 + small);
    }
    template <class T> static T slope(T a) { return a - a * a; }
    template <class T> static T bent(T a, T moved) { return moved - 2 * a * moved; }
};
struct Softplus {
    template <class T> static T value(T z) { return (z < 0 ? T(0) : z) + log1p(exp(z < 0 ? z : -z)); }
    template <class T> static T slope(T a) { return -expm1(-a); }
    template <class T> static T bent(T a, T moved) { return exp(-a) * moved; }
};
struct Relu {
    template <class T> static T value(T z) { return z < 0 ? T(0) : z; }
    template <class T> static T slope(T a) { return a > 0 ? T(1) : T(0); }
    template <class T> static T bent(T, T) { return 0; }
};
