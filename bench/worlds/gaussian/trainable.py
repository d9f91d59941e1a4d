"""A mixture whose means and logits are weights: a policy whose expected reward is known."""

from torch import Tensor, nn

from bench.worlds.gaussian.backbone import GaussianBackbone
from bench.worlds.gaussian.prompts import PromptBook
from stitchvm.backbone import Prompts


def trainable(flow: GaussianBackbone) -> GaussianBackbone:
    """The same flow, whose components' means and prompts' log weights ask for gradients."""
    mixture, latent = flow.mixture, flow.latent
    decoder = flow.decoder.weight.flatten(1).T  # as the constructor takes it
    own = GaussianBackbone(mixture, TrainableBook(flow.book), latent, decoder)
    own.decoder.to(mixture.means)
    means = own.means
    del own.means  # a buffer
    own.means = nn.Parameter(means.clone())
    own.book.log_weights.requires_grad_()
    return own


class TrainableBook(PromptBook):
    """Prompts whose log weights are a parameter; they need not be normalised.

    Args:
        book: What they are at first; the null prompt is a prompt of its own from here on.
    """

    def __init__(self, book: PromptBook) -> None:
        nn.Module.__init__(self)
        self.texts, self._index = book.texts, book._index
        self.log_weights = nn.Parameter(book.log_weights.clone())

    def weights(self, c: Prompts) -> Tensor:
        """Log component weights of prompts, (B, K)."""
        return super().weights(c).log_softmax(-1)
