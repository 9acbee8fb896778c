"""The Hugging Face Hub, the only room that knows the network.

- `client`: limited patience with the Hub, and its errors in words;
- `download`: from a bundled name, a folder or a Hub id to a folder at a commit;
- `upload`: files to one commit, read back and compared.
"""

from didi_gym.hub.client import SkillPolicyHubError
from didi_gym.hub.download import KnownModel, fetch, known_models, list_pretrained, resolve, weights_sha256

__all__ = [
    "KnownModel",
    "SkillPolicyHubError",
    "fetch",
    "known_models",
    "list_pretrained",
    "resolve",
    "weights_sha256",
]
