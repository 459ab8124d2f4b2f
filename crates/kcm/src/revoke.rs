//! Taking back what a socket has leased (`lease.rs`) and has not come to yet.

use std::sync::{Arc, atomic::Ordering};

use crate::{mux::Mux, psock::Psock, receive::Rx, socket::SocketState, walk::Leased};

impl Mux {
    /// Takes what another socket has leased and not come to yet. The caller has the connection's
    /// claim then.
    pub(crate) fn revoke_a_lease(&self) -> Option<Arc<Psock>> {
        let psock = self.revoke_one(|leased| !leased.in_order)?;
        self.hold_leases_off();
        Some(psock)
    }

    /// Threads share what comes: nothing is to be one's own for a while.
    pub(crate) fn hold_leases_off(&self) {
        /// Takes without leases after one was revoked: the revocation costs some 2 us for both
        /// threads, a take under locks 100 ns.
        const HOLDOFF: u32 = 256;
        self.lease_holdoff.store(HOLDOFF, Ordering::Relaxed);
    }

    /// Whether that is over, at so many takes more.
    pub(crate) fn may_lease_again(&self, takes: usize) -> bool {
        let left = self.lease_holdoff.load(Ordering::Relaxed);
        if left > 0 {
            let takes = u32::try_from(takes).unwrap_or(u32::MAX);
            (self.lease_holdoff).store(left.saturating_sub(takes), Ordering::Relaxed);
        }
        left == 0
    }

    /// Takes the lease of a connection back, and with it its claim. False: it has none.
    pub(crate) fn revoke_lease_of(&self, psock: &Arc<Psock>) -> bool {
        self.revoke_one(|leased| Arc::ptr_eq(&leased.psock, psock))
            .is_some()
    }

    fn revoke_one(&self, one: impl Fn(&Leased) -> bool) -> Option<Arc<Psock>> {
        if self.leases.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.all_sockets()
            .iter()
            .filter_map(|socket| socket.lease.leased())
            .filter(one)
            .map(|leased| leased.psock)
            .find(|psock| self.revoke_under(psock, &mut psock.lock_rx()))
    }

    /// Takes the lease of a connection back, whose receiving side the caller has locked: lease and
    /// position change together. True: the caller has the claim now. (That of an ordered one stays
    /// with the socket until it is done with what it has taken.)
    pub(crate) fn revoke_under(&self, psock: &Arc<Psock>, rx: &mut Rx) -> bool {
        if self.leases.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let of_this = |leased: &Leased| Arc::ptr_eq(&leased.psock, psock);
        let revoke = |socket: &Arc<SocketState>| socket.lease.revoke(of_this);
        let Some((leased, position)) = self.all_sockets().iter().find_map(revoke) else {
            return false;
        };
        self.leases.fetch_sub(1, Ordering::SeqCst);
        rx.set_position(position);
        if leased.in_order {
            // With the receiving side locked, as it is when the walk ends.
            psock.hold_for_order();
        }
        !leased.in_order
    }

    /// Another connection has come, which is to have its turn.
    pub(crate) fn end_lone_walks(&self) {
        if self.leases.load(Ordering::SeqCst) > 0 {
            for socket in self.all_sockets() {
                self.revoke_lease_from(&socket);
            }
        }
    }

    /// Takes back what one socket has leased.
    pub(crate) fn revoke_lease_from(&self, socket: &SocketState) {
        if let Some(leased) = socket.lease.leased() {
            leased.psock.take_back_lease();
        }
    }
}
