#version 450
// One subgroup moves one splat: lane l holds the quads l, l + LANES, ... of its row in registers,
// and every sum over the row is one subgroupAdd. No shared memory, no barriers.
//
// Counters and normals repeat mldb/noise/philox.py operation for operation; everything marked
// `precise` may be neither fused nor reordered, so their bits are those of the NumPy reference.
// Loops over quads carry no hint: drivers unroll short ones, which keeps the arrays in registers
// (on lavapipe three times faster than as loops). Loops over steps and neighbours must stay loops:
// unrolled, they would compile for seconds. Rows are read as texels: lavapipe reads a storage
// buffer lane by lane, with a branch for each, and took six times as long for 16 neighbours.
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_samplerless_texture_functions : require

const uint WORDS = 0, NORMALS = 1, ISOTROPIC = 2, SELF = 3, MIXTURE = 4;

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint MODE = SELF;
layout(constant_id = 2) const uint LANES = 32;   // invocations of a subgroup
layout(constant_id = 3) const uint DIM = 640;    // components of a row
layout(constant_id = 4) const uint K = 1;        // neighbours of a splat
layout(constant_id = 5) const bool MALA = false;
layout(constant_id = 6) const uint WINDOWS = 1;  // buffers that the table is split into

const uint QUADS = (DIM + 3) / 4;
const uint HELD = (QUADS + LANES - 1) / LANES;  // quads of one lane
const bool WHOLE = QUADS % LANES == 0;          // every lane holds HELD quads
const uint REST = DIM % 4;                      // components of the last quad; 0: all four

layout(set = 0, binding = 0, std140) uniform Parameters {
    uvec2 seed;
    uint pass_number;
    uint rows;
    uint first_step;
    uint steps;
    uint mu_base;           // in quads: where mu starts in the rows; 0 when mu is x
    uint kappa_base;        // in words of `extra`
    uint weight_base;
    uint rows_per_window;
    float step_size;        // eps
    float noise;            // sqrt(2 eps T)
    float inverse_t;        // 1 / T
    float strength;         // rho
    float strength_rest;    // sqrt(1 - rho^2)
    float length_error;     // how far |x|^2 may be from 1
} p;
layout(set = 0, binding = 1, std430) readonly buffer KeyOfRow { uvec2 key_of_row[]; };
layout(set = 0, binding = 2) uniform textureBuffer rows;
layout(set = 0, binding = 3, std430) readonly buffer Extra { uint extra[]; };
layout(set = 0, binding = 4, std430) writeonly buffer Ends { uvec4 ends[]; };
layout(set = 0, binding = 5, std430) writeonly buffer Accepted { int accepted[]; };
layout(set = 0, binding = 6) uniform textureBuffer table[4];

uint row;               // the splat of this subgroup
uint lane;
uvec2 row_key;
vec4 x[HELD];           // where the chain is
vec4 g[HELD];           // -grad E there, not projected
vec4 v[HELD];           // the tangent step that leads away
vec4 x_old[HELD];       // MALA: where it comes from
vec4 g_old[HELD];

uint quad_of(uint i) { return i * LANES + lane; }
bool held(uint i) { return WHOLE || quad_of(i) < QUADS; }
float total(vec4 part) { return subgroupAdd((part.x + part.y) + (part.z + part.w)); }

// ---- noise: mldb/noise/philox.py ----

uvec4 philox(uvec4 c) {
    uvec2 k = p.seed;
    for (int i = 0; i < 10; i++) {
        uint high0, low0, high1, low1;
        umulExtended(0xD2511F53u, c.x, high0, low0);
        umulExtended(0xCD9E8D57u, c.z, high1, low1);
        c = uvec4(high1 ^ c.y ^ k.x, low1, high0 ^ c.w ^ k.y, low0);
        k += uvec2(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

uvec4 words_of(uint step, uint block) {
    return philox(uvec4(block | (step << 16), p.pass_number, row_key));
}

float uniform_of(uint word) {
    precise float u = (float(word >> 9) + 0.5) * 1.1920928955078125e-07;
    return u;
}

// ln u of a positive normal number.
float logarithm(float u) {
    uint bits = floatBitsToUint(u) + 0x004AFB0Du;
    precise float e = float(int(bits >> 23) - 127);
    precise float m = uintBitsToFloat((bits & 0x007FFFFFu) + 0x3F3504F3u);
    precise float s = (m - 1.0) / (m + 1.0);
    precise float z = s * s;
    precise float series = z * (1.0 / 9.0);
    series = z * (series + (1.0 / 7.0));
    series = z * (series + (1.0 / 5.0));
    series = z * (series + (1.0 / 3.0));
    precise float twice = s + s;
    precise float l = e * 0.69314718055994531 + (twice + twice * series);
    return l;
}

// (cos a, sin a) for |a| <= pi / 4.
vec2 circle(float a) {
    precise float z = a * a;
    precise float c = z * (1.0 / 40320.0);
    c = z * (c - (1.0 / 720.0));
    c = z * (c + (1.0 / 24.0));
    c = z * (c - 0.5);
    c = c + 1.0;
    precise float s = z * (1.0 / 362880.0);
    s = z * (s - (1.0 / 5040.0));
    s = z * (s + (1.0 / 120.0));
    s = z * (s - (1.0 / 6.0));
    s = a + a * s;
    return vec2(c, s);
}

vec2 normal_pair(uint radius_word, uint angle_word) {
    precise float l = -2.0 * logarithm(uniform_of(radius_word));
    precise float r = sqrt(l);
    // pi / 2^24, rounded once.
    precise float a = (float(int(angle_word << 2) >> 9) + 0.5) * 1.87253514146845438e-07;
    vec2 cs = circle(a);
    bool odd = (angle_word & 0x40000000u) != 0u;
    bool low = (angle_word & 0x80000000u) != 0u;
    float cx = odd ? cs.y : cs.x;
    float cy = odd ? cs.x : cs.y;
    precise vec2 pair = r * vec2(odd != low ? -cx : cx, low ? -cy : cy);
    return pair;
}

vec4 normals_of(uint step, uint quad) {
    uvec4 w = words_of(step, quad);
    vec4 n = vec4(normal_pair(w.x, w.y), normal_pair(w.z, w.w));
    // Components past DIM pad the last quad and stay zero.
    if (REST != 0 && quad == QUADS - 1) {
        n = vec4(n.x, REST > 1 ? n.y : 0.0, REST > 2 ? n.z : 0.0, 0.0);
    }
    return n;
}

// ---- functions that differ between vendors, or are not exact enough ----

// e^y for y <= 0; below e^-87 it is 0.
float exponential(float y) {
    float n = round(max(y, -88.0) * 1.44269504088896341);
    // ln 2 in two parts: the first has so few bits that n times it is exact.
    precise float r = (max(y, -88.0) - n * 0.693359375) + n * 2.12194440e-4;
    precise float s = r * (1.0 / 5040.0);
    s = r * (s + (1.0 / 720.0));
    s = r * (s + (1.0 / 120.0));
    s = r * (s + (1.0 / 24.0));
    s = r * (s + (1.0 / 6.0));
    s = r * (s + 0.5);
    s = r * (s + 1.0) + 1.0;
    return y < -87.0 ? 0.0 : s * uintBitsToFloat(uint(int(n) + 127) << 23);
}

// (cos b, sin b) for 0 <= b < 8192: pi / 2 in three parts (Cody and Waite 1980).
vec2 cosine_sine(float b) {
    float n = round(b * 0.63661977236758134);
    precise float a = ((b - n * 1.5703125) - n * 4.837512969970703e-4) - n * 7.549789948768648e-8;
    vec2 cs = circle(a);
    uint quadrant = uint(n) & 3u;
    vec2 turned = (quadrant & 1u) != 0u ? vec2(-cs.y, cs.x) : cs;
    return (quadrant & 2u) != 0u ? -turned : turned;
}

// ---- the two energies ----

// Leave -grad E at x in g and return E; ULA does not look at E, and the compiler drops it.
float self_energy() {
    float kappa = uintBitsToFloat(extra[p.kappa_base + row]);
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            vec4 mu = texelFetch(rows, int(p.mu_base + row * QUADS + quad_of(i)));
            g[i] = kappa * mu;
            part += mu * x[i];
        }
    }
    return MALA ? kappa * (1.0 - total(part)) : 0.0;
}

// Constant indices need no feature of the device; a table of one window has no branch.
vec4 table_quad(uint window, int quad) {
    if (WINDOWS == 1 || window == 0) {
        return texelFetch(table[0], quad);
    } else if (WINDOWS == 2 || window == 1) {
        return texelFetch(table[1], quad);
    } else if (WINDOWS == 3 || window == 2) {
        return texelFetch(table[2], quad);
    }
    return texelFetch(table[3], quad);
}

// One pass over the neighbours: the softmax is kept relative to the largest exponent so far, so
// that each row is read once (Milakov and Gimelshein 2018).
float mixture_energy() {
    float largest = -3.0e38;
    float weights = 0.0;
    for (uint i = 0; i < HELD; i++) {
        g[i] = vec4(0.0);
    }
    [[dont_unroll]] for (uint j = 0; j < K; j++) {
        uint at = row * K + j;
        uint number = extra[at];
        float kappa = uintBitsToFloat(extra[p.kappa_base + at]);
        float log_weight = uintBitsToFloat(extra[p.weight_base + at]);
        uint window = WINDOWS == 1 ? 0 : number / p.rows_per_window;
        uint first = (number - window * p.rows_per_window) * QUADS;
        vec4 mu[HELD];
        vec4 part = vec4(0.0);
        for (uint i = 0; i < HELD; i++) {
            if (held(i)) {
                mu[i] = table_quad(window, int(first + quad_of(i)));
                part += mu[i] * x[i];
            }
        }
        float z = log_weight + kappa * (total(part) - 1.0);
        if (z > largest) {
            float shrink = exponential(largest - z);
            largest = z;
            weights *= shrink;
            for (uint i = 0; i < HELD; i++) {
                g[i] *= shrink;
            }
        }
        float weight = exponential(z - largest);
        weights += weight;
        for (uint i = 0; i < HELD; i++) {
            if (held(i)) {
                g[i] += (weight * kappa) * mu[i];
            }
        }
    }
    for (uint i = 0; i < HELD; i++) {
        g[i] /= weights;
    }
    return MALA ? -(largest + logarithm(weights)) : 0.0;
}

float energy() { return MODE == SELF ? self_energy() : mixture_energy(); }

// ---- the steps ----

// Take from v its part along x, given x.v; return |v|.
float make_tangent(float along) {
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            v[i] -= along * x[i];
            part += v[i] * v[i];
        }
    }
    return sqrt(total(part));
}

// x = stay x + go v, renormalised.
void walk(float stay, float go) {
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            x[i] = stay * x[i] + go * v[i];
            part += x[i] * x[i];
        }
    }
    float scale = 1.0 / sqrt(total(part));
    for (uint i = 0; i < HELD; i++) {
        x[i] *= scale;
    }
}

// x = cos|v| x + sin|v| v/|v|; v = eps (-grad E) + sqrt(2 eps T) xi, made tangent. Returns |v|.
float move(uint step) {
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            v[i] = p.step_size * g[i] + p.noise * normals_of(step, quad_of(i));
            part += x[i] * v[i];
        }
    }
    float size = make_tangent(total(part));
    vec2 cs = cosine_sine(size);
    walk(cs.x, size > 0.0 ? cs.y / size : 1.0);
    return size;
}

float dot_xg() {
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            part += x[i] * g[i];
        }
    }
    return total(part);
}

// mldb/gpu/dynamics.py, log_acceptance: the squares of both ways share |v|^2, which is taken out.
float log_acceptance(float length_v, float rise, float along_old, float along) {
    vec2 cs = cosine_sine(length_v);
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            vec4 grad_old = along_old * x_old[i] - g_old[i];
            vec4 grad = along * x[i] - g[i];
            vec4 back = (length_v * cs.y) * x_old[i] - cs.x * v[i];
            part += 2.0 * (back * grad - v[i] * grad_old)
                + p.step_size * (grad * grad - grad_old * grad_old);
        }
    }
    return -(rise + 0.25 * total(part)) * p.inverse_t;
}

void ula() {
    [[dont_unroll]] for (uint step = 0; step < p.steps; step++) {
        energy();
        move(p.first_step + step);
    }
}

int mala() {
    const float PI = 3.14159265358979;
    int count = 0;
    float e_old = 0.0, along_old = 0.0, length_v = 0.0;
    // One more round than steps: a round looks at the energy where the last step led.
    [[dont_unroll]] for (uint step = 0; step <= p.steps; step++) {
        float e = energy();
        float along = dot_xg();
        if (step > 0) {
            float u = uniform_of(words_of(p.first_step + step - 1, 0xFFFFu).x);
            bool accept = length_v < PI
                && logarithm(u) < log_acceptance(length_v, e - e_old, along_old, along);
            count += int(accept);
            if (!accept) {
                for (uint i = 0; i < HELD; i++) {
                    x[i] = x_old[i];
                    g[i] = g_old[i];
                }
                e = e_old;
                along = along_old;
            }
        }
        if (step == p.steps) {
            break;
        }
        for (uint i = 0; i < HELD; i++) {
            x_old[i] = x[i];
            g_old[i] = g[i];
        }
        e_old = e;
        along_old = along;
        length_v = move(p.first_step + step);
    }
    return count;
}

// x = rho x + sqrt(1 - rho^2) u, u uniform on the sphere tangent at x; then renormalised.
void isotropic() {
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            v[i] = normals_of(p.first_step, quad_of(i));
            part += x[i] * v[i];
        }
    }
    float size = make_tangent(total(part));
    walk(p.strength, size > 0.0 ? p.strength_rest / size : 0.0);
}

void main() {
    uint group = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    row = group * gl_NumSubgroups + gl_SubgroupID;
    lane = gl_SubgroupInvocationID;
    if (row >= p.rows) {
        return;
    }
    row_key = key_of_row[row];
    uint first = row * QUADS;
    if (MODE == WORDS || MODE == NORMALS) {
        [[dont_unroll]] for (uint quad = lane; quad < QUADS; quad += LANES) {
            ends[first + quad] = MODE == WORDS
                ? words_of(p.first_step, quad)
                : floatBitsToUint(normals_of(p.first_step, quad));
        }
        if (lane == 0) {
            accepted[row] = 0;
        }
        return;
    }
    vec4 part = vec4(0.0);
    for (uint i = 0; i < HELD; i++) {
        x[i] = held(i) ? texelFetch(rows, int(first + quad_of(i))) : vec4(0.0);
        part += x[i] * x[i];
    }
    // Refused by the host when the batch is collected: -1 is no count. NaN is not within, either.
    bool unit = abs(total(part) - 1.0) <= p.length_error;
    int count = int(p.steps);
    if (MODE == ISOTROPIC) {
        isotropic();
    } else if (MALA) {
        count = mala();
    } else {
        ula();
    }
    for (uint i = 0; i < HELD; i++) {
        if (held(i)) {
            ends[first + quad_of(i)] = floatBitsToUint(x[i]);
        }
    }
    // Mesa's llvmpipe ends every loop of an invocation once they have had 65,535 rounds together.
    // The host asks for less; if it ever asks for too much, this loop has one round and not two.
    uint rounds = 0;
    [[dont_unroll]] for (uint i = 0; i < 2 + (p.rows >> 31); i++) {
        rounds++;
    }
    if (lane == 0) {
        accepted[row] = rounds < 2 ? -2 : unit ? count : -1;
    }
}
