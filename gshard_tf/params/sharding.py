"""Sharding tables: einsum letters to mesh axes, one table for each experiment.

Letters: b rows, l positions, t source positions, m model, h hidden, n heads,
k size of a head (or choice of a token), r buckets, v vocabulary, g groups,
s tokens of a group, e experts, c capacity, z slots, d devices.
"""

_EXPERT, _MODEL = 'expert', 'model'
MESH_AXES = (_EXPERT, _MODEL)

# The paper's layout (2006.16668, section 3.1): rows, groups and experts along
# one axis, so that the dispatch is an all-to-all; everything else is whole on
# every device. Along the second axis, if the mesh has one, lie the heads, the
# hidden units and the vocabulary.
GSHARD = {
    # weights
    'm': (None,),
    'e': (None,),
    'vm': (_MODEL, None),
    'vm_lookup': (None, None),
    'mnk': (None, _MODEL, None),
    'nkm': (_MODEL, None, None),
    'nr': (_MODEL, None),
    'mh': (None, _MODEL),
    'hm': (_MODEL, None),
    'me': (None, None),
    'emh': (_EXPERT, None, _MODEL),
    'ehm': (_EXPERT, _MODEL, None),
    # activations
    'bl': (_EXPERT, None),
    'blm': (_EXPERT, None, None),
    'blh': (_EXPERT, None, _MODEL),
    'blv': (_EXPERT, None, _MODEL),
    'blnk': (_EXPERT, None, _MODEL, None),
    'bnlt': (_EXPERT, _MODEL, None, None),
    'gs': (_EXPERT, None),
    'gse': (_EXPERT, None, None),
    'gsk': (_EXPERT, None, None),
    'gsm': (_EXPERT, None, None),
    'gzm': (_EXPERT, None, None),
    'gecm': (_EXPERT, None, None, None),
    'egcm': (_EXPERT, None, None, None),
    'ezm': (_EXPERT, None, None),
    'ezh': (_EXPERT, None, _MODEL),
    # dropless experts: tokens whole, sums and blocks of each device
    'sk': (None, None),
    'sm': (None, None),
    'dz': (_EXPERT, None),
    'dzm': (_EXPERT, None, None),
    'dzh': (_EXPERT, None, _MODEL),
    'demh': (_EXPERT, None, None, _MODEL),
    'dehm': (_EXPERT, None, _MODEL, None),
}

# As GSHARD, with the vocabulary along both axes, in storage and in the softmax:
# for batches with fewer tokens than the vocabulary has, where the hidden states
# are cheaper to bring together than the table.
SPLIT_VOCABULARY = GSHARD | {
    'vm': ((_EXPERT, _MODEL), None),
    'blv': (None, None, (_EXPERT, _MODEL)),
}

# Devices are all alike along both axes: rows, groups and experts lie along both,
# and the dense weights, which GSHARD keeps whole on every device, are stored in
# parts along `model` and brought together where they are used (1910.02054,
# section 5.3). For models whose dense weights outgrow a device.
_BOTH = (_EXPERT, _MODEL)
SPLIT_WEIGHTS = {
    letters: tuple(_BOTH if axis == _EXPERT else None for axis in axes)
    for letters, axes in GSHARD.items()} | {
        'vm': (_MODEL, None), 'mnk': (_MODEL, None, None), 'nkm': (None, None, _MODEL),
        'mh': (_MODEL, None), 'hm': (None, _MODEL), 'me': (_MODEL, None)}
