r"""Formulas of estimators and of the words that they are made of, in LaTeX, typeset as SVG by matplotlib's mathtext.

g = ∇L is the gradient, u a direction of mean 0 and E uuᵀ = I over d numbers, c = ⟨∇L, u⟩ its derivative, ĝ the estimate.
"""

import io
import re

SCHEMES = {
    "BP": r"\hat g = \nabla L(\theta)",
    "L-BP": r"\hat g = \nabla \sum_b L_b(\theta)",
    "LG-BP": r"\hat g = \sum_b \nabla_{\theta_b} L_b(\theta_b \mid x_{b-1}\ \mathrm{stopped})",
    "FA": r"\delta_l = (B_l\,\delta_{l+1}) \odot \sigma'(z_l), \quad \hat g_l = \delta_l\, x_l^{\top}",
    "L-FA": r"\delta_l = (B_l\,\delta_{l+1}) \odot \sigma'(z_l) + \partial L_b/\partial z_l",
    "LG-FA": r"\delta_l = (B_l\,\delta_{l+1}) \odot \sigma'(z_l), \quad \delta_{b} = \partial L_b/\partial z_b",
    "DFA": r"\delta_l = (B_l\,\partial L/\partial y) \odot \sigma'(z_l), \quad \hat g_l = \delta_l\, x_l^{\top}",
    "FG-W": r"\hat g = \langle \nabla_w L, u \rangle\, u, \quad u \sim N(0, I_d)",
    "FG-A": r"\hat g_l = \sum_n \langle \nabla_z \ell_n, u_n \rangle\, u_{n,l}\, x_{n,l}^{\top} / N",
    "LG-FG-W": r"\hat g_b = \langle \nabla_{w_b} L_b, u_b \rangle\, u_b",
    "LG-FG-A": r"\hat g_{b} = \sum_{n,p,g} \langle \nabla_z \ell_{bnpg}, u_{bnpg} \rangle\, u_{bnpg}\, x_{bnp}^{\top}/N",
    "SPSA": r"\hat g = \frac{L(\theta + \epsilon u) - L(\theta - \epsilon u)}{2\epsilon}\, u, \quad u_i = \pm 1",
    "MeZO": r"\hat g = \frac{L(\theta + \epsilon u) - L(\theta - \epsilon u)}{2\epsilon}\, u, \quad u \sim N(0, I)",
    "EGGROLL": r"\hat g = \frac{L(\theta + \epsilon E) - L(\theta - \epsilon E)}{2\epsilon}\, E, \quad E = a b^{\top}",
    "NP": r"\hat g_l = \sum_n \frac{\ell_n(z + \epsilon u_n) - \ell_n(z)}{\epsilon N}\, u_{n,l}\, x_{n,l}^{\top}",
    "sparse-FG-W": r"\hat g = \langle \nabla L, u \rangle\, u, \quad u_i = b_i\,\xi_i/\sqrt{q}, \; P(b_i = 1) = q",
    "multi-FG-W": r"\hat g = \frac{1}{K} \sum_{k=1}^{K} \langle \nabla L, u_k \rangle\, u_k",
    "projected-FG-W": r"\hat g = U (U^{\top} U)^{+} U^{\top} \nabla L",
    "normed-FG-W": r"\hat g = \sqrt{d/K}\; U (U^{\top} U)^{+} U^{\top} \nabla L",
    "orthogonal-FG-W": r"\hat g = \frac{d}{K} \sum_k \langle \nabla L, q_k \rangle\, q_k, \quad \langle q_j, q_k \rangle = \delta_{jk}",
    "random-guess": r"\hat g = \langle \nabla L, u \rangle\, u / \Vert u \Vert^2",
    "local-guess": r"\hat g = \langle \nabla L, h \rangle\, h / \Vert h \Vert^2, \quad h = \nabla L_{\mathrm{local}}",
    "NTK-guess": r"\hat g = \langle \nabla L, h \rangle\, h / \Vert h \Vert^2, \quad h = \nabla L_{\mathrm{local}, 0}",
    "transposed-guess": r"\hat g = \langle \nabla L, u \rangle\, u, \quad u = W^{\top} \varepsilon \odot \sigma'(z)",
    "orthogonalised-guess": r"\hat g = \langle \nabla L, u \rangle\, u, \quad u = \mathrm{orth}(W)^{\top} \varepsilon \odot \sigma'(z)",
    "SVD-guess": r"\hat g = \langle \nabla L, u \rangle\, u, \quad u = (U V^{\top})^{\top} \varepsilon, \; W = U \Sigma V^{\top}",
    "span-guess": r"\hat g = \langle \nabla L, u \rangle\, u, \quad u = \sum_n \varepsilon_n x_n^{\top}",
    "backprop-guess": r"\hat g = \langle \nabla L, h \rangle\, h / \Vert h \Vert^2, \quad h = \nabla L",
    "minibatch": r"\hat g = \nabla \ell_n(\theta), \quad n \sim U\{1, \ldots, N\}",
    "frozen": r"\hat g_{\mathrm{head}} = \nabla_{\mathrm{head}} L, \quad \hat g_{\mathrm{trunk}} = 0",
    "sham": r"\hat g_l = \sum_n \langle \nabla_z \ell_{n+1}, u_{n+1} \rangle\, u_{n,l}\, x_{n,l}^{\top} / N",
    "matched-noise": r"\hat g = g + \Vert \hat a - \hat b \Vert\, u / \sqrt{2 d}",
    "isotropic-null": r"\hat g = \Vert g \Vert\, u / \sqrt{d}",
}
WORDS = {
    "Estimator": r"\hat g = \mathrm{pullback}\left(\frac{1}{K} \sum_k c_k u_k\right), \quad c_k = \langle \nabla L, u_k \rangle",
    "ExactGradient": r"\hat g = \nabla L(\theta)",
    "WeightSpace": r"\hat g = \langle \nabla_w L, u \rangle\, u",
    "ActivitySpace": r"\hat g_l = \sum_n \langle \nabla_z \ell_n, u_n \rangle\, (\partial z_{n,l}/\partial w_l)^{\top} u_{n,l} / N",
    "GlobalLoss": r"L = \frac{1}{N} \sum_n \ell(f(x_n), y_n)",
    "LocalLosses": r"L = \sum_b L_b, \quad L_b = \frac{1}{N P G} \sum_{n,p,g} \ell_{bnpg}",
    "Gaussian": r"u_i \sim N(0, 1), \quad E\,u_i^4 = 3",
    "Rademacher": r"P(u_i = 1) = P(u_i = -1) = 1/2, \quad E\,u_i^4 = 1",
    "Jvp": r"c = \frac{\partial}{\partial t} L(\theta + t u) \vert_{t=0} = \langle \nabla L, u \rangle",
    "Stochastic": r"\hat g = T_{\mathrm{then}}\left(\sum_i \omega_i\, T_{\mathrm{each}}(\nabla \ell_i(\theta'))\right)",
    "History": r"\hat g_t = S(\hat g_1, \ldots, \hat g_t)",
    "Against": r"\mathrm{bias} = E\,\hat g - t, \quad \cos = \langle \hat g, t \rangle / \Vert \hat g \Vert \Vert t \Vert",
    "Sphere": r"u = \sqrt{d}\; \xi / \Vert \xi \Vert, \quad \xi \sim N(0, I_d)",
    "Coordinate": r"u = \pm \sqrt{d}\; e_i, \quad i \sim U\{1, \ldots, d\}",
    "Orthogonal": r"\langle u_j, u_k \rangle = d\,\delta_{jk}",
    "Sparse": r"u_i = b_i\, \xi_i / \sqrt{q}, \quad P(b_i = 1) = q",
    "LowRank": r"u = A B^{\top} / \sqrt{r}",
    "Uniform": r"u_i \sim U(-\sqrt{3}, \sqrt{3})",
    "Choice": r"E \sum_k \omega_k\, x(i_k) = \sum_n x(n), \quad \omega_k = 1/(m\,p_{i_k})",
    "Bernoulli": r"P(b_i = 1) = q = 1 - P(b_i = 0)",
    "Isotropic": r"E\,u u^{\top} = I",
    "LocalGradient": r"u = \nabla L_{\mathrm{local}}",
    "NTK": r"u = \nabla L_{\mathrm{local}}\ \mathrm{of\ heads\ at\ initialisation}",
    "BackpropGradient": r"u = \nabla L",
    "TransposedWeights": r"u = W^{\top} \varepsilon \odot \sigma'(z)",
    "ActivationSpan": r"u = \sum_n \varepsilon_n x_n^{\top}",
    "guess_matrix": r"\hat g = \frac{\langle t, h \rangle}{\Vert h \Vert^2}\, h",
    "ForwardDifference": r"c = \frac{L(\theta + \epsilon u) - L(\theta)}{\epsilon}",
    "CentralDifference": r"c = \frac{L(\theta + \epsilon u) - L(\theta - \epsilon u)}{2 \epsilon}",
    "Replay": r"c = \langle \nabla L, u \rangle",
    "Mean": r"\hat g = \frac{1}{K} \sum_{k=1}^{K} c_k\, u_k",
    "Projection": r"\hat g = U (U^{\top} U)^{+} U^{\top} \nabla L",
    "Normalised": r"\hat g = \frac{1}{K} \sum_k \frac{c_k}{\Vert u_k \Vert^2}\, u_k",
    "ShuffledCredit": r"\hat g = \frac{1}{K} \sum_k c_{\pi(k)}\, u_k",
    "FeedbackAlignment": r"\delta_l = (B_l\, \delta_{l+1}) \odot \sigma'(z_l)",
    "DirectFeedback": r"\delta_l = (B_l\, \partial L/\partial y) \odot \sigma'(z_l)",
    "FrozenTrunk": r"\hat g_{\mathrm{trunk}} = 0",
    "MatchedNoise": r"\hat g = g + \Vert \hat a - \hat b \Vert\, u / \sqrt{2 d}",
    "IsotropicNull": r"\hat g = \Vert g \Vert\, u / \sqrt{d}",
    "Everything": r"\hat g = \frac{1}{N} \sum_n g_n",
    "Draw": r"\hat g = \frac{1}{N} \sum_{k=1}^{m} \omega_k\, g_{i_k}, \quad \omega_k = \frac{1}{m\,p_{i_k}}",
    "Poisson": r"\hat g = \frac{1}{N} \sum_n \frac{b_n}{q}\, g_n, \quad P(b_n = 1) = q",
    "Reweighted": r"\hat g = \sum_n \frac{s_n}{\sum_j s_j}\, g_n",
    "Union": r"\hat g = \sum_j \frac{m_j}{\sum_i m_i}\, \hat g_j",
    "sampling.Uniform": r"p_n = 1/N",
    "Losses": r"p_n \propto \ell_n^{\alpha}",
    "Outputs": r"p_n \propto \vert f(x_n) \vert",
    "GradientNorms": r"p_n \propto \Vert g_n \Vert",
    "TermSizes": r"p_i \propto \vert z_i \vert \quad \mathrm{or} \quad p = \mathrm{softmax}(\log z)",
    "Mixed": r"p = (1 - \eta)\, s / \sum s + \eta / N",
    "Here": r"\theta' = \theta",
    "Ahead": r"\theta' = \theta - \epsilon\, z",
    "Noise": r"z \sim N(0, I), \quad E\,\nabla L(\theta - \epsilon z) = \nabla L + \frac{1}{2} \epsilon^2\, \nabla \mathrm{tr}\,H + O(\epsilon^4)",
    "Past": r"z_t = \hat g_{t-1}",
    "Kept": r"z = g_{\mathrm{kept}}",
    "Tapped": r"\hat g = \nabla_\theta L(z + \sigma u)",
    "Momentum": r"m_t = \sum_k \beta^k g_{t-k} \; / \; \sum_k \beta^k",
    "Adam": r"\xi\, \hat m_t / (\sqrt{\hat v_t} + \epsilon)",
    "DiffGrad": r"\xi_t = \sigma(\vert g_{t-1} - g_t \vert)",
    "ErrorFeedback": r"\hat g_t = C(g_t + e_{t-1}), \quad e_t = g_t + e_{t-1} - \hat g_t",
    "TargetOf": r"t = E\,\hat g_{\mathrm{other}}\ \mathrm{where\ it\ is\ unbiased}",
    "Propagated": r"t = \sum_{r=1}^{R} (I - h H)^{r K} g, \quad R = 1:\ (I - h H)^K g",
    "Masked": r"t = M \odot g",
    "hessian": r"H_{ij} = \partial^2 L / \partial \theta_i \partial \theta_j",
    "Newton": r"t = (H + \mu I)^{-1} g",
    "Clip": r"\min(1, C / \Vert g \Vert)\, g",
    "AddNoise": r"g + s\,u, \quad u \sim N(0, I)",
    "RandomK": r"\frac{d}{k} \sum_{i \in S} g_i\, e_i, \quad \vert S \vert = k",
    "TopK": r"\sum_{i \in S} g_i\, e_i, \quad S = k\ \mathrm{largest}\ \vert g_i \vert",
    "Quantise": r"\frac{\Vert g \Vert}{s}\, \mathrm{sign}(g_i)\, (\lfloor x_i \rfloor + b_i), \quad x_i = \frac{s \vert g_i \vert}{\Vert g \Vert}",
    "Sign": r"\mathrm{sign}(g_i)",
    "Mask": r"M \odot g, \quad M_i \in \{0, 1\}",
    "Magnitude": r"M_i = 1 \; \mathrm{where} \; \vert w_i \vert \geq q_s(\vert w \vert)",
    "Saliency": r"M_i = 1 \; \mathrm{where} \; F_i / F'_i \geq \tau, \quad F = E\,g^2",
    "Carriers": r"a = g R^{\top}, \quad b = L^{\top} g",
    "FromCarriers": r"g' = a R + L b - L L^{\top} a R",
    "Retained": r"(\theta_K(\theta + h g) - \theta_K(\theta)) / h = (I - h H)^K g + O(h)",
}


def typeset(latex: str, words: str) -> str:
    """The formula as inline SVG in the colour of the text around it; ``words`` are for who cannot see it.

    Example:
        >>> typeset(r"\\frac{1}{K}", "one over K")[:30]
        '<svg role="img" class="formula'
    """
    import matplotlib as mpl
    from matplotlib.mathtext import math_to_image

    drawn = io.BytesIO()
    with mpl.rc_context({"mathtext.fontset": "stix", "svg.hashsalt": words, "svg.fonttype": "path"}):
        math_to_image(f"${latex}$", drawn, format="svg")
    svg = drawn.getvalue().decode()
    box, width = re.search(r'viewBox="([^"]+)"', svg), re.search(r'width="([\d.]+)pt"', svg)
    parts = re.search(r'<g id="text_1">(.*)</g>\s*</g>\s*</svg>', svg, flags=re.DOTALL)
    assert box
    assert width
    assert parts, svg
    own = "f" + re.sub(r"\W", "", words)
    body = re.sub(r'\bid="', f'id="{own}-', parts[1]).replace('href="#', f'href="#{own}-')
    label = words.replace('"', "")
    return (
        f'<svg role="img" class="formula" aria-label="{label}" viewBox="{box[1]}" '
        f'style="width: {float(width[1]) / 8:.2f}em" xmlns:xlink="http://www.w3.org/1999/xlink">{body}</svg>'
    )
