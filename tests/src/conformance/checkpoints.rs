//! What every backend of this seam must do.
