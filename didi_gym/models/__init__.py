"""Networks and the policy made of them, its folder, and what the Hub shows of it.

- `networks`, `unet`: architectures; `normalizer`: units; `config`: what `config.json` records;
- `prior`: the diffusion prior; `dynamics`: one-step models; `discriminator`: which skill a trajectory shows;
- `policy_network`: what learns; `engines`: ways to compute its plans; `policy`: `SkillPolicy`, what acts;
- `weights`: safetensors, read strictly; `folder`: a policy's files;
- `card`, `card_text`: model cards; `publishing`: a policy and its card to the Hub.
"""
