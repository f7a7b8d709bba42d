"""Editing methods as values: one file each, which reads like its paper.

fpe         maps of the source in the middle layers (Free-Prompt-Editing)
ddim        nothing but guided sampling from the inverted latent
sdedit      guided sampling from the noised source
p2p         maps of self- and cross-attention, brought to the words of the target (Prompt-to-Prompt)
pnp         self-attention maps and one residual (Plug-and-Play)
masactrl    keys and values of the source
diffedit    a mask of what the prompts see differently
blended     noise inside a given mask, the source outside
pix2pix_zero  a direction of the text; gradients hold the source's cross-attention maps
shape_guided  attention that a mask splits, in the inversion and in the edit
instruct_pix2pix  a UNet that sees the source and reads an instruction

A method is a frozen dataclass of its parameters with a `rule`, see `fpe_core.editors.method`. A new
one is a new file here: it is found by its name (`method_named`), and its rows are counted by its
rule. These files need no torch.
"""
