/* joint.h - joint matrices in plain arithmetic, for a device without matrix units: what native/backends/sycl/matrix.prelude uses of
 * them, and nothing else. A by rows and B as pairs of rows, in sub-groups of as many work-items as a matrix has columns, of which
 * each has a column of B and of the sums. Where a sub-group is not whole the result is no number. */
#include <sycl/sycl.hpp>
#define JOINT standin
namespace standin {
enum class use { a, b, accumulator };
enum class layout { row_major, ext_intel_packed, dynamic };
template <typename G, typename T, use U, size_t R, size_t C, layout L = layout::dynamic> struct joint_matrix;
struct once {
    once() = default;
    once(const once &) = delete;
    once &operator=(const once &) = delete;
};
template <typename G, typename T, size_t R, size_t C> struct joint_matrix<G, T, use::a, R, C, layout::row_major> : once { float x[R][C]; };
template <typename G, typename T, size_t R, size_t C> struct joint_matrix<G, T, use::b, R, C, layout::ext_intel_packed> : once { float x[R]; };
template <typename G, size_t R, size_t C> struct joint_matrix<G, float, use::accumulator, R, C> : once { float x[R]; };
template <typename T> float widened(T x) { return sycl::bit_cast<float>(unsigned(sycl::bit_cast<uint16_t>(x)) << 16); }

template <typename G, typename T, size_t R, size_t C, sycl::access::decorated D>
void joint_matrix_load(G, joint_matrix<G, T, use::a, R, C, layout::row_major> &to,
                       sycl::multi_ptr<T, sycl::access::address_space::local_space, D> from, size_t stride) {
    for (size_t r = 0; r < R; r++)
        for (size_t c = 0; c < C; c++) to.x[r][c] = widened(from[r * stride + c]);
}
template <typename G, typename T, size_t R, size_t C, sycl::access::decorated D>
void joint_matrix_load(G team, joint_matrix<G, T, use::b, R, C, layout::ext_intel_packed> &to,
                       sycl::multi_ptr<T, sycl::access::address_space::local_space, D> from, size_t stride) {
    for (size_t r = 0; r < R; r++) to.x[r] = widened(from[r / 2 * stride + team.get_local_linear_id() * 2 + r % 2]);
}
template <typename G, size_t R, size_t C> void joint_matrix_fill(G, joint_matrix<G, float, use::accumulator, R, C> &to, float x) {
    for (size_t r = 0; r < R; r++) to.x[r] = x;
}
template <typename G, typename T, size_t M, size_t N, size_t K>
void joint_matrix_mad(G, joint_matrix<G, float, use::accumulator, M, N> &d, const joint_matrix<G, T, use::a, M, K, layout::row_major> &a,
                      const joint_matrix<G, T, use::b, K, N, layout::ext_intel_packed> &b,
                      const joint_matrix<G, float, use::accumulator, M, N> &c) {
    for (size_t m = 0; m < M; m++) {
        float sum = c.x[m];
        for (size_t k = 0; k < K; k++) sum += a.x[m][k] * b.x[k];
        d.x[m] = sum;
    }
}
template <typename G, size_t R, size_t C, sycl::access::decorated D>
void joint_matrix_store(G team, const joint_matrix<G, float, use::accumulator, R, C> &from,
                        sycl::multi_ptr<float, sycl::access::address_space::local_space, D> to, size_t stride, layout) {
    const bool whole = team.get_local_linear_range() == C && team.get_max_local_range()[0] == C;
    for (size_t r = 0; r < R; r++) to[r * stride + team.get_local_linear_id()] = whole ? from.x[r] : __builtin_nanf("");
}
} // namespace standin
