/* lower_more.h - the part of lower.c for ops of some architectures: mixtures of experts and the gated delta rule. */
/* ---- a mixture of experts ---- */

LOWER(route) {
    UNUSED;
    const struct fb_route_views *v = &l->route;
    if (v->chosen.cols > 512) return fb_fail(FB_E_LIMIT, "%d experts for a token are more than 512", (int)v->chosen.cols), 0;
    begin(d, FB_KERNEL_route, 64);
    d->operand.route = (struct fb_route_operands){.OUT = v->weights, .CHOSEN = v->chosen, .LOGITS = v->logits};
    d->argument.route = (struct fb_route_arguments){.M = rows_of(&v->logits), .EXPERTS = (uint32_t)v->logits.cols,
                                                    .SLOTS = (uint32_t)v->chosen.cols};
    d->groups = (uint64_t)v->logits.rows;
    d->work = 1.0 * v->logits.rows * v->logits.cols * v->logits.cols;
    d->rounds = up((uint64_t)v->logits.cols, 64) * (uint64_t)v->logits.cols + 2 * (uint64_t)v->chosen.cols;
    return 1;
}
LOWER(route_grad) {
    UNUSED;
    const struct fb_route_grad_views *v = &l->route_grad;
    spread(d, FB_KERNEL_route, &v->dlogits, 2);
    d->operand.route = (struct fb_route_operands){.OUT = v->dlogits, .CHOSEN = v->chosen, .WEIGHTS = v->weights, .DWEIGHTS = v->dweights};
    d->constant.route.OP = 1;
    d->argument.route = (struct fb_route_arguments){.M = rows_of(&v->dlogits), .EXPERTS = (uint32_t)v->dlogits.cols,
                                                    .SLOTS = (uint32_t)v->chosen.cols};
    return 1;
}
LOWER(order) {
    UNUSED;
    const struct fb_order_views *v = &l->order;
    begin(d, FB_KERNEL_route, 128);
    d->operand.route = (struct fb_route_operands){.CHOSEN = v->chosen, .ORDER = v->order, .LOAD = v->load};
    d->constant.route.OP = 2;
    d->argument.route = (struct fb_route_arguments){.M = rows_of(&v->chosen), .EXPERTS = (uint32_t)l->attr.experts,
                                                    .SLOTS = (uint32_t)v->chosen.cols};
    d->groups = (uint64_t)l->attr.experts;
    d->work = 2.0 * l->attr.experts * v->chosen.rows * v->chosen.cols;
    d->rounds = 2.0 * up((uint64_t)v->chosen.rows * (uint64_t)v->chosen.cols, 128) + 128;
    return 1;
}

/* As products are, in tiles for as many rows as an expert has on average; `each`: rows of an expert's matrix. */
static int of_experts(dispatch *d, const fb_launch *l, const product *p, const fb_view *order, const fb_kernel_limits *limits) {
    const fb_view *by_expert = p->op == 2 ? &p->out : &p->w;
    const uint32_t slots = (uint32_t)l->attr.slots, rows = (uint32_t)p->x.rows * slots;
    const uint32_t each = (uint32_t)(p->op == 0 ? p->out : p->x).cols / slots, n = p->op == 0 ? each : (uint32_t)by_expert->cols;
    const uint32_t experts = (uint32_t)by_expert->rows / each, k = p->op == 0 ? (uint32_t)p->w.cols : each;
    const fb_view *stepped = p->op == 2 ? &p->w : &p->x;
    const uint32_t inner = p->op == 2 ? n : k;
    begin(d, FB_KERNEL_experts, 0);
    d->constant.product.OP = p->op;
    d->constant.product.WTYPE = (uint32_t)p->w.type;
    tiles(d, limits, p->op == 2 ? each : (uint32_t)up(rows, experts), n);
    d->operand.experts = (struct fb_experts_operands){.OUT = p->out, .X = p->x, .W = p->w, .ORDER = *order, .U = p->u, .B = p->b,
                                                      .ACC = p->acc, .BIAS = p->bias};
    d->argument.experts = (struct fb_experts_arguments){
        .M = rows_of(&p->x), .N = n, .K = k, .R = p->u.mem ? (uint32_t)p->u.cols / slots : 0, .EXPERTS = experts,
        .FIRST = (uint32_t)l->attr.first, .TOKEN = (uint32_t)l->attr.token, .SLOTS = slots,
        .STEP = (uint32_t)stepped->cols == inner ? 0 : inner, .SCALE = p->scale};
    const uint32_t bm = d->constant.product.BM, bn = d->constant.product.BN;
    d->groups = up(n, bn) * (p->op == 2 ? experts * up(each, bm) : rows / bm + (rows < experts ? rows : experts));
    d->work = 2.0 * rows * n * k;
    d->rounds = 42.0 * (up(p->op == 2 ? rows : k, 32) + up(d->argument.experts.R, 32)) + experts;
    return 1;
}
LOWER(experts) {
    (void)scratch;
    const struct fb_experts_views *v = &l->experts;
    const product p = {.out = v->y, .x = v->x, .w = v->w, .u = v->u, .b = v->b, .bias = v->bias, .scale = l->attr.scale};
    return of_experts(d, l, &p, &v->order, limits);
}
LOWER(experts_dx) {
    (void)scratch;
    const struct fb_experts_dx_views *v = &l->experts_dx;
    const product p = {.out = v->dx, .x = v->dy, .w = v->w, .u = v->u, .b = v->a, .acc = v->acc, .op = 1, .scale = l->attr.scale};
    return of_experts(d, l, &p, &v->order, limits);
}
LOWER(experts_dw) {
    (void)scratch;
    const struct fb_experts_dw_views *v = &l->experts_dw;
    const product p = {.out = v->dw, .x = v->dy, .w = v->x, .acc = v->dw, .op = 2, .scale = l->attr.scale};
    return of_experts(d, l, &p, &v->order, limits);
}

static int combined(dispatch *d, uint32_t op, struct fb_combine_operands v, int32_t slots) {
    d->operand.combine = v;
    d->constant.combine.OP = op;
    d->argument.combine = (struct fb_combine_arguments){.M = rows_of(&v.OUT), .SLOTS = (uint32_t)slots,
                                                        .COLS = (uint32_t)(op == 0 ? v.OUT : v.DY).cols};
    return 1;
}
LOWER(combine) {
    UNUSED;
    const struct fb_combine_views *v = &l->combine;
    spread(d, FB_KERNEL_combine, &v->y, 2);
    return combined(d, 0, (struct fb_combine_operands){.OUT = v->y, .X = v->x, .WEIGHTS = v->weights, .ACC = v->acc}, v->x.cols / v->y.cols);
}
LOWER(combine_grad) {
    UNUSED;
    const struct fb_combine_grad_views *v = &l->combine_grad;
    const int32_t slots = v->dweights.cols;
    spread(&d[0], FB_KERNEL_combine, &v->dx, 2);
    combined(&d[0], 1, (struct fb_combine_operands){.OUT = v->dx, .DY = v->dy, .WEIGHTS = v->weights}, slots);
    begin(&d[1], FB_KERNEL_combine, 64);
    combined(&d[1], 2, (struct fb_combine_operands){.OUT = v->dweights, .X = v->x, .DY = v->dy}, slots);
    d[1].groups = (uint64_t)v->dy.rows * (uint64_t)slots;
    d[1].work = 2.0 * v->x.rows * v->x.cols;
    d[1].rounds = up((uint64_t)v->dy.cols, 64) + 64;
    return 2;
}

/* ---- the gated delta rule ---- */

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
