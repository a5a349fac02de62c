/* lower_experts.h - the part of lower.c for mixtures of experts. */
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
