//! noxu-rep
