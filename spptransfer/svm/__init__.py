"""The linear SVM: all classes, all C, all folds at once."""

from __future__ import annotations

from spptransfer.svm._estimators import LinearSVM, LinearSVMCV
from spptransfer.svm._gram_matrix import GramMatrix, gram_matrix
from spptransfer.svm._rows import RowSubset

__all__ = ["GramMatrix", "LinearSVM", "LinearSVMCV", "RowSubset", "gram_matrix"]
