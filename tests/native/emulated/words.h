/* words.h - what the emulated dialects share: specialised constants as variables, and the host's mathematics. */
#ifndef EMULATED_WORDS_H
#define EMULATED_WORDS_H
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
using std::abs;
using std::exp;
using std::floor;
using std::log;
using std::max;
using std::min;
using std::sqrt;

struct emulated_three { unsigned x, y, z; };
extern "C" {
extern uint32_t emulated_spec[10];
extern emulated_three emulated_thread, emulated_group, emulated_threads, emulated_groups;
void emulated_barrier(void);
}
/* Constants change from launch to launch, so they are variables; and so the sizes of arrays are. */
#define CONSTANT(n, name) const uint &name = emulated_spec[n];

struct float4 {
    float x, y, z, w;
    float4() = default;
    float4(float a, float b, float c, float d) : x(a), y(b), z(c), w(d) {}
};
template <class to, class from> static inline to emulated_bits(from value) {
    to same;
    std::memcpy(&same, &value, sizeof same);
    return same;
}
#endif
