"""How the algorithm is made fast. What it computes is in the files one folder up.

rows, row_limit     the rows of a step, in as many chunks as memory allows
denoiser            the UNet on them, with the prompts of one call (prompts)
attention           the attention layers, and which of them a rule names
exchange            what rows of a source hand over to rows of its edits
parts, forward      one pass; rows of one latent are computed once until they differ
pass_rows, attend   its attentions: recorded, given, or the rows' own
call, cuda_graphs   passes captured as CUDA graphs
fused               fewer passes over memory on a GPU (triton_kernels)
norms               group norms that are exact on a CPU
family              which configs are of the family
"""
