"""The linear SVM: all classes, all C, all folds at once."""

from __future__ import annotations

from spptransfer.svm._classifier import LinearSVM
from spptransfer.svm._rows import gram_matrix
from spptransfer.svm._search import LinearSVMCV

__all__ = ["LinearSVM", "LinearSVMCV", "gram_matrix"]
