"""Networks to keep: what failed once, and odd ones that fuzzing met.

As `python -m tests.fuzz` prints them. Each runs through the proofs.
"""

from tests.fuzz.builder import Network

KEPT = {
    # Two parts of 8 side by side, each of them one group: no group can go, so channels
    # within the groups do.
    "one_group_in_each_part": Network(
        source="""
def network(v, x):
    x = conv(x, v["w1"])
    y2 = dense(x, v["w3"], v["b4"])
    x = y2 + jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, y2.shape[-1] - x.shape[-1])])
    x = group_norm(x, v["s5"], v["b6"], size=8)
    return dense(x.mean((1, 2)), v["w7"], v["b8"])
""",
        weights={
            "w1": (3, 3, 3, 8),
            "w3": (8, 16),
            "b4": (16,),
            "s5": (16,),
            "b6": (16,),
            "w7": (16, 5),
            "b8": (5,),
        },
        x=(2, 4, 4, 3),
        not_maskable="a mean over channels",
        not_by_hand="the source would take all that is left for one group",
    ),
    # One key head repeated for two query heads: of the copies one goes.
    "one_key_head_repeated": Network(
        source="""
def network(v, x):
    x = dense(x, v["w1"], v["b2"])
    q3 = heads(dense(x, v["w6"], v["b7"]), 2)
    q4 = heads(dense(x, v["w8"], v["b9"]), 2)
    q5 = heads(dense(x, v["w10"], v["b11"]), 2)
    q4, q5 = (jnp.repeat(y, 2, axis=2) for y in (q4, q5))
    q3 = attend(q3, q4, q5)
    x = x + dense(q3, v["w12"], v["b13"])
    return dense(x, v["w14"], v["b15"])
""",
        weights={
            "w1": (5, 32),
            "b2": (32,),
            "w6": (32, 4),
            "b7": (4,),
            "w8": (32, 2),
            "b9": (2,),
            "w10": (32, 2),
            "b11": (2,),
            "w12": (4, 32),
            "b13": (32,),
            "w14": (32, 5),
            "b15": (5,),
        },
        x=(2, 6, 5),
        contracted=dict.fromkeys(("w1", "w6", "w8", "w10", "w12", "w14"), (0,)),
    ),
    # Back to the first order: the same factor narrows before, between and after.
    "shuffled_twice": Network(
        source="""
def network(v, x):
    x = shuffle(shuffle(conv(x, v["w1"]), 4), 4)
    return dense(x.mean((1, 2)), v["w2"], v["b3"])
""",
        weights={"w1": (3, 3, 3, 16), "w2": (16, 5), "b3": (5,)},
        x=(2, 4, 4, 3),
        contracted={"w1": (2,), "w2": (0,)},
        not_by_hand="which factor is `size` afterwards depends on which one narrows",
    ),
    # Groups of the convolution cut across those of the shuffle: 8 is 4 x 2 and 2 x 4.
    "shuffled_then_grouped": Network(
        source="""
def network(v, x):
    x = shuffle(conv(x, v["w1"]), 4)
    x = conv(x, v["w2"], groups=x.shape[-1] // 2)
    return dense(x.mean((1, 2)), v["w3"], v["b4"])
""",
        weights={"w1": (3, 3, 3, 8), "w2": (3, 3, 2, 8), "w3": (8, 5), "b4": (5,)},
        x=(2, 4, 4, 3),
        contracted={"w1": (2,), "w2": (2,), "w3": (0,)},
        not_by_hand="which factor is `size` afterwards depends on which one narrows",
    ),
    # A factor that is no number of terms, though there are 8 (less 1) of them.
    "seven_times_softmax": Network(
        source="""
def network(v, x):
    x = 7 * jax.nn.softmax(dense(x, v["w1"], v["b2"]), -1)
    return dense(x, v["w3"], v["b4"])
""",
        weights={"w1": (5, 8), "b2": (8,), "w3": (8, 5), "b4": (5,)},
        x=(2, 5),
        not_maskable="a softmax over channels",
    ),
}
