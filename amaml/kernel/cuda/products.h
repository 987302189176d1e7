// Products of matrices in shared memory, by tiles of 4 × 4 sums in registers. The order of all sums depends on the matrices'
// sizes alone.
#pragma once
#include "block.h"

template <class T> struct alignas(4 * sizeof(T)) Four {
    T v[4];
};
template <class T> INLINE Four<T> load(const T* from) { return *reinterpret_cast<const Four<T>*>(from); }
template <class T> INLINE void store(T* to, const Four<T>& v) { *reinterpret_cast<Four<T>*>(to) = v; }
template <class T> struct Tile {
    Four<T> row[4];
};
constexpr int HALF_TILES = THREADS * 8;  // numbers of shared memory that `inner` needs: half a tile for each thread

INLINE constexpr int parts(int whole, int part) { return (whole + part - 1) / part; }

// Σ over `shares` neighbouring threads.
template <class T> INLINE T gathered(T sum, int shares) {
#pragma unroll
    for (int apart = WARP / 2; apart; apart /= 2)
        if (apart < shares) sum += __shfl_xor_sync(0xffffffff, sum, apart);
    return sum;
}
template <class T> INLINE void gather(Tile<T>& tile, int rows, int shares) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (i < rows) tile.row[i].v[j] = gathered(tile.row[i].v[j], shares);
}

// The arrangement of a warp's threads over tiles: down × across tiles, and `shares` threads for each tile. Neighbouring threads
// load the same numbers.
struct Layout {
    int down, across, shares, blocks_across, blocks;

    // Chooses the largest number of threads for each tile, up to `most`, that needs no more blocks than there are warps.
    INLINE constexpr Layout(int tiles_down, int tiles_across, int most)
        : down(WARP < 8 || tiles_down < 2 ? 1 : tiles_down < 4 ? 2 : tiles_down < 8 ? 4 : 8), across(WARP / down), shares(1),
          blocks_across(parts(tiles_across, across)), blocks(blocks_across * parts(tiles_down, down)) {
#pragma unroll
        for (int n = 0; n < 5; ++n) {
            const int more = 2 * shares, narrower = WARP / down / more;
            if (more > most || !narrower || parts(tiles_across, narrower) * parts(tiles_down, down) > WARPS) break;
            shares = more, across = narrower, blocks_across = parts(tiles_across, across);
            blocks = blocks_across * parts(tiles_down, down);
        }
    }
};

// A product of rows × columns = leftᵀ · right, with left [inner][rows] and right [inner][columns], whose rows are padded to whole
// fours.
template <class T> struct Outer {
    int rows, columns, inner;
    const T *left, *right;
    int left_stride, right_stride;
    const T* start;  // [rows]; null: 0
};
// The product's derivative along v: moved leftᵀ · right + leftᵀ · moved right, without the second term if moved right is null.
template <class T> struct Moved {
    const T *left, *right, *start;
};

template <class T> INLINE void add(Tile<T>& to, const Four<T>& a, const Four<T>& b, int rows) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (i < rows) to.row[i].v[j] += a.v[i] * b.v[j];
}

// store(r, c, line, moved line) has to write four columns of row r, from c on. `two`: whether the derivative is computed, too.
template <bool two, class T, class F> INLINE void outer(const Outer<T>& p, const Moved<T>& moved, F store) {
    const int down = parts(p.rows, 4), across = parts(p.columns, 4);
    const Layout layout(down, across, p.inner);
    const int lane = threadIdx.x % WARP, share = lane % layout.shares;
#pragma unroll 1
    for (int block = threadIdx.x / WARP; block < layout.blocks; block += WARPS) {
        const int tile_r = block / layout.blocks_across * layout.down + lane / (layout.shares * layout.across);
        const int tile_c = block % layout.blocks_across * layout.across + lane / layout.shares % layout.across;
        const int r = smaller(tile_r, down - 1) * 4, c = smaller(tile_c, across - 1) * 4;
        Tile<T> tile{}, along{};
        if (p.start && !share) {
            const Four<T> start = load(p.start + r), moved_start = two ? load(moved.start + r) : start;
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) tile.row[i].v[j] = start.v[i], along.row[i].v[j] = moved_start.v[i];
        }
#pragma unroll 4
        for (int k = share; k < p.inner; k += layout.shares) {
            const Four<T> a = load(p.left + r + k * p.left_stride), b = load(p.right + c + k * p.right_stride);
            add(tile, a, b, p.rows);
            if (two) {
                add(along, load(moved.left + r + k * p.left_stride), b, p.rows);
                if (moved.right) add(along, a, load(moved.right + c + k * p.right_stride), p.rows);
            }
        }
        gather(tile, p.rows, layout.shares);
        if (two) gather(along, p.rows, layout.shares);
        if (share || tile_r >= down || tile_c >= across) continue;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < p.rows && r + i < p.rows) store(r + i, c, tile.row[i], along.row[i]);
    }
}

// put(n, Σ over fours q of term(n, q)) for n < count.
template <class T, class F, class G> INLINE void sums(int count, int fours, F term, G put) {
    int shares = 1;
#pragma unroll
    for (int n = 0; n < 5; ++n)
        if (2 * shares * count <= THREADS && 2 * shares <= WARP && 2 * shares <= fours) shares *= 2;
    const int share = threadIdx.x % shares;
#pragma unroll 1
    for (int first = 0; first < count; first += THREADS / shares) {
        const int n = first + threadIdx.x / shares;
        T sum = 0;
        if (n < count)
#pragma unroll 4
            for (int q = share; q < fours; q += shares) sum += term(n, q);
        sum = gathered(sum, shares);
        if (!share && n < count) put(n, sum);
    }
}
template <class T> INLINE T dot(const Four<T>& a, const Four<T>& b) {
    return (a.v[0] * b.v[0] + a.v[1] * b.v[1]) + (a.v[2] * b.v[2] + a.v[3] * b.v[3]);
}

// A product of rows × columns = left · rightᵀ.
template <class T> struct Inner {
    int rows, columns, fours;       // fours: the length of the inner index, in fours
    const T *left, *right;          // [rows][stride], [columns][stride]
    const T *left_two, *right_two;  // a second product to add; null: none
    int stride;
};

// put(r, c, value) has to store an entry. A warp has 8 × 4 tiles; several warps may share them, each summing over its own points.
template <class T, class F> INLINE void inner(const Inner<T>& p, T* half_tiles, F put) {
    if (p.rows < 4 || p.columns < 4) {
        sums<T>(p.rows * p.columns, p.fours, [=](int n, int q) {
            const int r = n / p.columns * p.stride + 4 * q, c = n % p.columns * p.stride + 4 * q;
            const T one = dot(load(p.left + r), load(p.right + c));
            return p.left_two ? one + dot(load(p.left_two + r), load(p.right_two + c)) : one;
        }, [=](int n, T sum) { put(n / p.columns, n % p.columns, sum); });
        return;
    }
    constexpr int high = WARP < 8 ? 1 : 8, wide = WARP / high;
    const int down = parts(p.rows, 4), across = parts(p.columns, 4), blocks_down = parts(down, high);
    const int blocks = blocks_down * parts(across, wide), shares = larger(1, smaller(WARPS / blocks, p.fours));
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, at_once = WARPS / shares;
#pragma unroll 1
    for (int first = 0; first < blocks; first += at_once) {
        const int block = first + warp / shares, share = warp % shares;
        const int r = block % blocks_down * high + lane % high, c = block / blocks_down * wide + lane / high;
        Tile<T> tile{};  // rows r, r + down, … and columns c, c + across, …
        const auto collect = [&](const T* left, const T* right) {
            int a[4], b[4];
#pragma unroll
            for (int i = 0; i < 4; ++i)
                a[i] = smaller(r + i * down, p.rows - 1) * p.stride, b[i] = smaller(c + i * across, p.columns - 1) * p.stride;
#pragma unroll 2
            for (int n = share; n < p.fours; n += shares) {
                Four<T> x[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) x[i] = load(left + a[i] + 4 * n);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const Four<T> z = load(right + b[j] + 4 * n);
#pragma unroll
                    for (int q = 0; q < 4; ++q)
#pragma unroll
                        for (int i = 0; i < 4; ++i) tile.row[i].v[j] += x[i].v[q] * z.v[q];
                }
            }
        };
        if (warp < at_once * shares && block < blocks) {
            collect(p.left, p.right);
            if (p.left_two) collect(p.left_two, p.right_two);
        }
        const auto finish = [&](int i, const Four<T>& line) {
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (r < down && c < across && r + i * down < p.rows && c + j * across < p.columns) put(r + i * down, c + j * across, line.v[j]);
        };
        if (shares == 1) {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (block < blocks) finish(i, tile.row[i]);
            continue;
        }
        // Half of every tile at a time; the warps that share a block sum one line each.
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
#pragma unroll
            for (int i = 0; i < 2; ++i) store(half_tiles + (i * THREADS + threadIdx.x) * 4, tile.row[half + i]);
            barrier();
            if (share < 2 && warp < at_once * shares && block < blocks)
                for (int i = share; i < 2; i += smaller(shares, 2)) {
                    Four<T> line{};
                    for (int n = 0; n < shares; ++n) {
                        const Four<T> more = load(half_tiles + (i * THREADS + threadIdx.x + (n - share) * WARP) * 4);
#pragma unroll
                        for (int j = 0; j < 4; ++j) line.v[j] += more.v[j];
                    }
                    finish(half + i, line);
                }
            barrier();
        }
    }
}
