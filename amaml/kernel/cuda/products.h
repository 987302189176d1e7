// Products of matrices in a multiprocessor's own memory, by tiles of 4 × 4 sums in registers. Where there are fewer tiles than threads,
// several neighbouring threads share a tile's sums. Who adds what in which order depends on the matrices' sizes alone.
#pragma once
#include "block.h"

template <class T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};
template <class T> INLINE Four<T> load(const T* from) { return *reinterpret_cast<const Four<T>*>(from); }
template <class T> INLINE void store(T* to, const Four<T>& v) { *reinterpret_cast<Four<T>*>(to) = v; }
template <class T> struct Tile {
    T sum[4][4];
};

// How `tiles` tiles are divided: so many threads for each, a power of two.
INLINE int sharers(int tiles, int most) {
    int shares = 1;
    while (2 * shares * tiles <= THREADS && 2 * shares <= WARP && 2 * shares <= most) shares *= 2;
    return shares;
}
template <class T> INLINE void gather(Tile<T>& tile, int shares) {
    for (int apart = shares / 2; apart; apart /= 2)
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) tile.sum[i][j] += __shfl_xor_sync(0xffffffff, tile.sum[i][j], apart);
}

// rows × columns = left · right, the factors by their inner index: left [inner][rows], right [inner][columns].
template <class T> struct Outer {
    int rows, columns, inner;
    const T *left, *right;
    int left_stride, right_stride;
    const T* start;  // [rows]; null: 0
};
// And the same along a direction: moved_left · right + left · moved_right, the latter if it isn't null.
template <class T> struct Moved {
    const T *left, *right, *start;
};

// store(r, c, tile, moved tile) has to write rows from r and columns from c on. `moved` is used only with two = true.
template <bool two, class T, class F> INLINE void outer(const Outer<T>& p, const Moved<T>& moved, F store) {
    const int down = (p.rows + 3) / 4, across = (p.columns + 3) / 4, tiles = down * across, shares = sharers(tiles, p.inner);
    const int share = threadIdx.x % shares, team = THREADS / shares;
    for (int first = 0; first < tiles; first += team) {
        const int wanted = first + threadIdx.x / shares, number = smaller(wanted, tiles - 1);
        const int r = number / across * 4, c = number % across * 4;
        Tile<T> tile{}, along{};
        const T *left = p.left + r, *right = p.right + c, *moved_left = moved.left + r, *moved_right = moved.right + c;
        const auto add = [](Tile<T>& to, const Four<T>& a, const Four<T>& b) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) to.sum[i][j] += a.v[i] * b.v[j];
        };
#pragma unroll 4
        for (int k = share; k < p.inner; k += shares) {
            const Four<T> a = load(left + k * p.left_stride), b = load(right + k * p.right_stride);
            add(tile, a, b);
            if (two) {
                add(along, load(moved_left + k * p.left_stride), b);
                if (moved.right) add(along, a, load(moved_right + k * p.right_stride));
            }
        }
        gather(tile, shares);
        if (two) gather(along, shares);
        if (share || wanted >= tiles) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (r + i >= p.rows) break;
            Four<T> line, moved_line;
            const T begin = p.start ? p.start[r + i] : T(0), moved_begin = two && moved.start ? moved.start[r + i] : T(0);
#pragma unroll
            for (int j = 0; j < 4; ++j) line.v[j] = tile.sum[i][j] + begin, moved_line.v[j] = along.sum[i][j] + moved_begin;
            store(r + i, c, line, moved_line);
        }
    }
}

// rows × (columns + 1) = left · rightᵀ, the inner index along both factors' rows; the last column are the sums of left's rows.
template <class T> struct Inner {
    int rows, columns, inner;  // inner: a multiple of 4
    const T *left, *right;     // [rows][stride], [columns][stride]
    const T *left_two, *right_two;  // a second product to add, without the last column; null: none
    int stride;
    const T *ones, *zeros;  // rows of them
};
// add(r, c, value) has to take over an entry.
template <class T, class F> INLINE void inner(const Inner<T>& p, F put) {
    const int columns = p.columns + 1, down = (p.rows + 3) / 4, across = (columns + 3) / 4, tiles = down * across;
    const int vectors = p.inner / 4, shares = sharers(tiles, vectors), share = threadIdx.x % shares, team = THREADS / shares;
    for (int first = 0; first < tiles; first += team) {
        const int wanted = first + threadIdx.x / shares, number = smaller(wanted, tiles - 1);
        const int r = number / across, c = number % across;  // rows r, r + down, … and columns c, c + across, …
        Tile<T> tile{};
        const auto add = [&](const T* left, const T* right, const T* last) {
            const T *a[4], *b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int column = c + i * across;
                a[i] = left + smaller(r + i * down, p.rows - 1) * p.stride;
                b[i] = column < p.columns ? right + column * p.stride : last;
            }
            for (int n = share; n < vectors; n += shares) {
                Four<T> x[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) x[i] = load(a[i] + 4 * n);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const Four<T> z = load(b[j] + 4 * n);
#pragma unroll
                    for (int i = 0; i < 4; ++i)
#pragma unroll
                        for (int q = 0; q < 4; ++q) tile.sum[i][j] += x[i].v[q] * z.v[q];
                }
            }
        };
        add(p.left, p.right, p.ones);
        if (p.left_two) add(p.left_two, p.right_two, p.zeros);
        gather(tile, shares);
        if (share || wanted >= tiles) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (r + i * down < p.rows && c + j * across < columns) put(r + i * down, c + j * across, tile.sum[i][j]);
    }
}
