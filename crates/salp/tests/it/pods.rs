//! What a pod may say and what becomes of it.
