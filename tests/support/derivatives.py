"""Derivatives of a map along, back, twice and under vmap, by which two maps are held against each other."""

import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

X, U, V = torch.randn(3, 4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def cubed(f):
    return lambda x: (V * f(x) ** 3).sum()


# Of f, which keeps the shape [4, 3, 6], and the value and all derivatives up to the second.
DERIVATIVES = {
    "value": lambda f: f(X),
    "along": lambda f: jvp(f, (X,), (U,))[1],
    "back": lambda f: vjp(f, X)[1](U)[0],
    "gradient beside a tangent": lambda f: grad(lambda x: (jvp(f, (x,), (U,))[0] ** 3).sum())(X),
    "gradient of a tangent": lambda f: grad(lambda x: (jvp(f, (x,), (U,))[1] ** 2).sum())(X),
    "gradient by the direction": lambda f: grad(lambda u: (jvp(f, (X,), (u,))[1] ** 2).sum())(U),
    "tangent of a tangent": lambda f: jvp(lambda x: jvp(f, (x,), (U,))[1], (X,), (V,))[1],
    "tangent by the direction": lambda f: jvp(lambda u: jvp(f, (X,), (u,))[1], (U,), (V,))[1],
    "tangent of a gradient": lambda f: jvp(grad(cubed(f)), (X,), (U,))[1],
    "gradient of a gradient": lambda f: grad(lambda x: (grad(cubed(f))(x) ** 2).sum())(X),
    "forward over reverse": lambda f: hessian(cubed(f))(X),
    "forward over forward": lambda f: jacfwd(jacfwd(cubed(f)))(X),
    "reverse over forward": lambda f: jacrev(jacfwd(cubed(f)))(X),
    "vmap over directions": lambda f: vmap(lambda u: jvp(f, (X,), (u,))[1])(torch.stack([U, V])),
    "vmap over both": lambda f: vmap(lambda x, u: jvp(f, (x,), (u,))[1])(X, U),
    "vmap inside": lambda f: jvp(vmap(f), (X,), (U,))[1],
    "vmap on both sides": lambda f: vmap(lambda u: jvp(vmap(f), (X,), (u,))[1])(torch.stack([U, V])),
    "vmap of second derivatives": lambda f: vmap(lambda u: grad(lambda x: (jvp(f, (x,), (u,))[1] ** 2).sum())(X))(
        torch.stack([U, V])
    ),
    "autograd": lambda f: torch.autograd.grad(cubed(f)(x := X.clone().requires_grad_()), x)[0],
}
