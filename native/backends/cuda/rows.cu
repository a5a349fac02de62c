/* rows.cu - what goes row by row at the speed of memory, eight neighbours of 16-byte accesses a thread at a time.
 *     NORM        y = x inv w, a team of TEAM threads a group of G columns; NORM_DX its input gradient
 *     ROPE        rotation of heads of HEAD columns, of which the first N_ROT; HALVES: pairs are N_ROT/2 apart
 *     GLU         y = gate(a) b; GLU_GRAD its gradients; KIND 0 SiLU, 1 GELU in its tanh form, 2 squared ReLU, 3 none, 4 sigmoid
 *     ADD, SCALE  y = a + b; y = scale a + acc
 *     XENT        cross-entropy of a row of logits, a workgroup a row; GRAD: softmax - onehot takes their place; CAP: capped
 * Constants: OP, one of these; T0 T1 ...: types of the op's operands, in its order. */
#include "common.cu"
#define NORM 0
#define NORM_DX 1
#define ROPE 2
#define GLU 3
#define GLU_GRAD 4
#define ADD 5
#define SCALE 6
#define XENT 7

/* Where eight neighbours are: row r, column c of operand k. */
__device__ long long place(const cu_args &args, int k, int r, int c) { return r * args.v[k].ld + c; }
#define GET(k, r, c, x) get8<T##k>(args.v[k].at, place(args, k, r, c), x)
#define PUT(k, r, c, x) put8<T##k>(args.v[k].at, place(args, k, r, c), x)

#if OP == NORM || OP == NORM_DX
#define EACH ((G / 8 + TEAM - 1) / TEAM)
/* The sum of a team's parts, in a fixed order. */
__device__ float sum_of(float x) {
    __shared__ float parts[8];
    const uint team = TEAM < 32 ? (1u << TEAM % 32) - 1 << threadIdx.x % 32 / TEAM * TEAM : 0xffffffffu;
    for (int i = (TEAM < 32 ? TEAM : 32) / 2; i > 0; i /= 2) x += __shfl_xor_sync(team, x, i);
    if (TEAM <= 32) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.0f;
    for (int i = 0; i < 8; i++) x += parts[i];
    return x;
}

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ cu_args args) {
    constexpr int X = OP == NORM ? 1 : 2, W = X + 1;
    const int groups = args.v[0].cols / G, mine = threadIdx.x % TEAM, at = blockIdx.x * (256 / TEAM) + threadIdx.x / TEAM;
    const int r = at / groups, c0 = at % groups * G;
    if (r >= in_use(args, X)) return; /* with its whole team */
    float x[EACH][8], dy[OP == NORM ? 1 : EACH][8], w[8], squares = 0.0f, dot = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = (mine + i * TEAM) * 8;
        if (c >= G) continue;
#if OP == NORM
        GET(1, r, c0 + c, x[i]);
#else
        GET(2, r, c0 + c, x[i]);
        GET(1, r, c0 + c, dy[i]);
        get8<CU_F32>(args.v[W].at, c, w);
        for (int k = 0; k < 8; k++) dot += (dy[i][k] *= w[k]) * x[i][k];
#endif
        for (int k = 0; k < 8; k++) squares += x[i][k] * x[i][k];
    }
    const float inv = 1.0f / sqrtf(sum_of(squares) / G + args.eps), mean = OP == NORM ? 0.0f : sum_of(dot) / G * inv * inv;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int c = (mine + i * TEAM) * 8;
        if (c >= G) continue;
#if OP == NORM
        get8<CU_F32>(args.v[W].at, c, w);
        for (int k = 0; k < 8; k++) x[i][k] *= inv * w[k];
#else
        for (int k = 0; k < 8; k++) x[i][k] = inv * (dy[i][k] - x[i][k] * mean);
#if T4
        float acc[8];
        GET(4, r, c0 + c, acc);
        for (int k = 0; k < 8; k++) x[i][k] += acc[k];
#endif
#endif
        PUT(0, r, c0 + c, x[i]);
    }
}

#elif OP == XENT
__device__ float capped(const cu_args &args, float x) { return CAP ? args.softcap * tanhf(x / args.softcap) : x; }

/* A running sum of exp(x - top): one more x, or the sum of another thread. */
struct running { float top, sum; };
__device__ running joined(running a, running b) {
    const float top = fmaxf(a.top, b.top);
    return {top, a.sum * expf(a.top - top) + b.sum * expf(b.top - top)};
}

extern "C" __global__ void __launch_bounds__(1024) run(const __grid_constant__ cu_args args) {
    __shared__ running parts[32];
    const int r = blockIdx.x, cols = args.v[1].cols;
    if (r >= in_use(args, 1)) return;
    float *row = (float *)args.v[1].at + r * args.v[1].ld;
    const int target = ((const int *)args.v[2].at)[r * args.v[2].ld];
    const float hit = capped(args, row[target]); /* before any is overwritten */
    running all = {-3.0e38f, 0.0f};
    for (int c = threadIdx.x * 4; c < cols; c += 4096) {
        const float4 v = *(const float4 *)(row + c);
        const float x[4] = {capped(args, v.x), capped(args, v.y), capped(args, v.z), capped(args, v.w)};
        const float top = fmaxf(fmaxf(all.top, fmaxf(x[0], x[1])), fmaxf(x[2], x[3]));
        all.sum *= expf(all.top - top);
        for (int k = 0; k < 4; k++) all.sum += expf(x[k] - top);
        all.top = top;
    }
    for (int i = 16; i > 0; i /= 2)
        all = joined(all, {__shfl_xor_sync(0xffffffffu, all.top, i), __shfl_xor_sync(0xffffffffu, all.sum, i)});
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = all;
    __syncthreads();
    all = parts[threadIdx.x % 32];
    for (int i = 16; i > 0; i /= 2)
        all = joined(all, {__shfl_xor_sync(0xffffffffu, all.top, i), __shfl_xor_sync(0xffffffffu, all.sum, i)});
    if (threadIdx.x == 0) ((float *)args.v[0].at)[r * args.v[0].ld] = logf(all.sum) + (all.top - hit);
    if (!GRAD) return;
    const float by = 1.0f / all.sum;
    for (int c = threadIdx.x * 4; c < cols; c += 4096) {
        float4 v = *(const float4 *)(row + c);
        float x[4] = {capped(args, v.x), capped(args, v.y), capped(args, v.z), capped(args, v.w)};
        for (int k = 0; k < 4; k++) {
            const float slope = CAP ? 1.0f - x[k] / args.softcap * (x[k] / args.softcap) : 1.0f;
            x[k] = (expf(x[k] - all.top) * by - (c + k == target ? 1.0f : 0.0f)) * slope;
        }
        *(float4 *)(row + c) = make_float4(x[0], x[1], x[2], x[3]);
    }
}

#else
#if OP != ROPE
#define HALVES 0
#define HEAD 8
#define N_ROT 0
#endif
#ifndef KIND
#define KIND 0
#endif
/* act(x) = x sigmoid(bend(x)), and its slope: bend is x, or twice sqrt(2/pi) (x + 0.044715 x^3). */
__device__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ float gate(float x, float &slope) {
    if (KIND == 2) {
        slope = 2.0f * fmaxf(x, 0.0f);
        return 0.25f * slope * slope;
    }
    if (KIND == 3) {
        slope = 1.0f;
        return x;
    }
    if (KIND == 4) {
        slope = sigmoid(x) * sigmoid(-x);
        return sigmoid(x);
    }
    const float u = KIND == 0 ? x : 1.5957691216f * x * (1.0f + 0.044715f * x * x), s = sigmoid(u);
    slope = s + x * s * sigmoid(-u) * (KIND == 0 ? 1.0f : 1.5957691216f * (1.0f + 0.134145f * x * x));
    return x * s;
}

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ cu_args args) {
    /* Of a head, in halves, a thread has eight of the first and their partners; or eight that are not turned. */
    const int cols = args.v[0].cols, each = OP == ROPE && HALVES ? N_ROT / 16 + (HEAD - N_ROT) / 8 : 1;
    const int across = OP == ROPE && HALVES ? cols / HEAD * each : cols / 8;
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    const int r = (int)(at / across), i = (int)(at % across);
    if (r >= in_use(args, 0)) return;
    float a[8], b[8], y[8], z[8];
#if OP == ROPE
    const int part = HALVES ? i % each : 0, turned = part < N_ROT / 16 || !HALVES, head = HALVES ? i / each * HEAD : 0;
    const int c = !HALVES ? i * 8 : head + (turned ? part * 8 : N_ROT + (part - N_ROT / 16) * 8),
              far = HALVES ? N_ROT / 2 : 0;
    const int pair = HALVES ? part * 8 : c % HEAD / 2; /* the first in the table */
    const float sign = args.inverse ? -1.0f : 1.0f;
    const float *table = (const float *)args.v[2].at + r * args.v[2].ld + pair * 2;
    const bool both = HALVES && turned;
    GET(1, r, c, a);
    if (both) GET(1, r, c + far, b);
    for (int k = 0; k < 8; k++) {
        const int of = HALVES ? k : k / 2;
        const bool still = HALVES ? !turned : c % HEAD + k >= N_ROT;
        const float cs = still ? 1.0f : table[2 * of], sn = still ? 0.0f : table[2 * of + 1] * sign;
        if (HALVES) y[k] = a[k] * cs - (both ? b[k] * sn : 0.0f), z[k] = both ? a[k] * sn + b[k] * cs : 0.0f;
        else y[k] = k % 2 ? a[k - 1] * sn + a[k] * cs : a[k] * cs - a[k + 1] * sn;
    }
#if T3
    GET(3, r, c, a);
    if (both) GET(3, r, c + far, b);
    for (int k = 0; k < 8; k++) y[k] += a[k], z[k] += both ? b[k] : 0.0f;
#endif
    PUT(0, r, c, y);
    if (both) PUT(0, r, c + far, z);
#elif OP == GLU
    GET(1, r, i * 8, a);
    GET(2, r, i * 8, b);
    for (int k = 0; k < 8; k++) y[k] = gate(a[k], z[k]) * b[k];
    PUT(0, r, i * 8, y);
#elif OP == GLU_GRAD
    float dy[8], slope;
    GET(2, r, i * 8, dy);
    GET(3, r, i * 8, a);
    GET(4, r, i * 8, b);
    for (int k = 0; k < 8; k++) {
        z[k] = dy[k] * gate(a[k], slope);
        y[k] = dy[k] * b[k] * slope;
    }
    PUT(0, r, i * 8, y);
    PUT(1, r, i * 8, z);
#elif OP == ADD
    GET(1, r, i * 8, a);
    GET(2, r, i * 8, b);
    for (int k = 0; k < 8; k++) y[k] = a[k] + b[k];
    PUT(0, r, i * 8, y);
#else
    GET(1, r, i * 8, a);
    for (int k = 0; k < 8; k++) y[k] = args.scale * a[k];
#if T2
    GET(2, r, i * 8, b);
    for (int k = 0; k < 8; k++) y[k] += b[k];
#endif
    PUT(0, r, i * 8, y);
#endif
}
#endif
