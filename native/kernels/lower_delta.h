/* lower_delta.h - the part of lower.c for the gated delta rule. */
static int gates(dispatch *d, uint32_t grad, struct fb_delta_gates_operands v) {
    begin(d, FB_KERNEL_delta_gates, 64);
    d->operand.delta_gates = v;
    d->constant.delta_gates.GRAD = grad;
    d->argument.delta_gates = (struct fb_delta_gates_arguments){.ROWS = rows_of(&v.B), .HEADS = (uint32_t)v.B.cols};
    d->groups = up((uint64_t)v.B.rows * (uint64_t)v.B.cols, 64);
    d->work = 32.0 * v.B.rows * v.B.cols;
    return 1;
}
LOWER(delta_gates) {
    UNUSED;
    const struct fb_delta_gates_views *v = &l->delta_gates;
    return gates(d, 0, (struct fb_delta_gates_operands){.OUT = v->gates, .B = v->b, .A = v->a, .RATE = v->rate, .RANGE = v->range});
}
LOWER(delta_gates_grad) {
    UNUSED;
    const struct fb_delta_gates_grad_views *v = &l->delta_gates_grad;
    return gates(d, 1, (struct fb_delta_gates_operands){.OUT = v->db, .OUT_A = v->da, .GATES = v->gates, .B = v->b, .A = v->a, .RATE = v->rate});
}

/* Rows of a stretch, whole chunks: as many as a thread may take, and no more than `most` of them. */
static uint32_t stretch_of(uint32_t rows, double each, uint32_t most, uint32_t wanted, const fb_kernel_limits *limits) {
    uint32_t step = wanted ? wanted : rows;
    if (limits->rounds && (step + 64) * each > limits->rounds) step = (uint32_t)(limits->rounds / each) / 64 * 64;
    if (step < up(rows, most)) step = (uint32_t)up(rows, most);
    return (uint32_t)up(step, 64) * 64;
}

LOWER(delta) {
    (void)scratch;
    const struct fb_delta_views *v = &l->delta;
    const uint32_t heads = (uint32_t)v->gates.cols / 4, keys = (uint32_t)l->attr.key_heads, rows = (uint32_t)v->q.rows;
    const uint32_t dk = (uint32_t)v->q.cols / keys, dv = (uint32_t)v->v.cols / heads, per = (uint32_t)up(dk, 4);
    const double each = 3.5 * per + 4;
    const uint32_t step = stretch_of(rows, each, FB_MOST_DISPATCHES, 0, limits);
    int n = 0;
    for (uint32_t from = 0; from < rows; from += step, n++, d++) {
        begin(d, FB_KERNEL_delta, 128);
        d->operand.delta = (struct fb_delta_operands){.O = v->o, .STATES = v->states, .Q = v->q, .K = v->k, .V = v->v,
                                                      .GATES = v->gates, .CACHE = v->cache, .PLACES = v->at};
        d->constant.delta.PER = per;
        d->argument.delta = (struct fb_delta_arguments){.T = rows_of(&v->q), .HEADS = heads, .KEY_HEADS = keys, .DK = dk, .DV = dv,
                                                        .FROM = from, .UPTO = from + step};
        d->groups = heads * up(dv, 32);
        d->work = 6.0 * step * heads * dk * dv;
        d->rounds = step * each;
    }
    return n;
}

/* Some rows of a view. */
static fb_view stretch(fb_view v, uint32_t from, uint32_t rows) {
    v.offset += fb_type_bytes(v.type, (int64_t)from * v.ld);
    v.rows = (int32_t)rows;
    v.first += v.count ? (int32_t)from : 0;
    return v;
}

/* Stretches from the last to the first, and after each the sums of its parts. */
LOWER(delta_grad) {
    const struct fb_delta_grad_views *v = &l->delta_grad;
    const uint32_t heads = (uint32_t)v->gates.cols / 4, keys = (uint32_t)l->attr.key_heads, rows = (uint32_t)v->q.rows;
    const uint32_t dk = (uint32_t)v->q.cols / keys, dv = (uint32_t)v->v.cols / heads, per = (uint32_t)up(dk, 128);
    const uint32_t blocks = (uint32_t)up(dv, 16), parts = heads / keys * blocks;
    const double each = 100.0 + 70 * per;
    const uint32_t step = stretch_of(rows, each, FB_MOST_DISPATCHES / 4, 128, limits), most = step < rows ? step : rows;
    const fb_view none = {0};
    room left = scratch_of(scratch, limits);
    const fb_view past = take(&left, FB_F32, (uint64_t)heads * blocks, 65ull * 16 * dk);
    const fb_view dqk = take(&left, FB_F32, 2ull * parts * most, (uint64_t)v->dq.cols);
    const fb_view gate_parts = take(&left, FB_F32, (uint64_t)blocks * most, 2 * heads);
    fb_view dgates = v->gates;
    int n = 0;
    if (!past.mem || !dqk.mem || !gate_parts.mem)
        return fb_fail(FB_E_LIMIT, "the gradient of a delta net needs more memory than kernels of this device can reach"), 0;
    dgates.offset += 2ull * heads * 4;
    dgates.cols = (int32_t)(2 * heads);
    for (uint32_t from = (rows - 1) / step * step + step; from >= step;) {
        from -= step;
        const uint32_t here = rows - from < step ? rows - from : step;
        const fb_view q = stretch(v->dq, from, here), k = stretch(v->dk, from, here), g = stretch(dgates, from, here);
        fb_view dq = dqk, dkey = dqk, dgate = gate_parts;
        dq.rows = dkey.rows = (int32_t)(parts * here), dgate.rows = (int32_t)(blocks * here);
        dkey.offset += 4ull * parts * here * (uint64_t)dqk.ld;
        begin(&d[n], FB_KERNEL_delta_grad, 128);
        d[n].operand.delta_grad = (struct fb_delta_grad_operands){
            .DQK = dqk, .DVALUES = v->dv, .DGATES = gate_parts, .GATES = v->gates, .Q = v->q, .K = v->k, .V = v->v,
            .STATES = v->states, .DO = v->dout, .PAST = past};
        d[n].constant.delta_grad.PER = per;
        d[n].argument.delta_grad = (struct fb_delta_grad_arguments){.T = rows_of(&v->q), .HEADS = heads, .KEY_HEADS = keys,
                                                                    .DK = dk, .DV = dv, .FROM = from, .STEP = here};
        d[n].groups = (uint64_t)heads * blocks;
        d[n].work = 24.0 * here * heads * dk * dv;
        d[n].rounds = here * each;
        add_parts(&d[n + 1], &q, dq, &none, &none);
        add_parts(&d[n + 2], &k, dkey, &none, &none);
        add_parts(&d[n + 3], &g, dgate, &none, &none);
        n += 4;
    }
    return n;
}
