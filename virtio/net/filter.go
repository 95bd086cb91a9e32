package net

// maxTable is how many addresses of a kind the filter knows; with more, it lets
// all of that kind through.
const maxTable = 64

// filter says which frames the guest wants: virtio 1.2, 5.1.6.5.1 and 5.1.6.5.2.
// It is not changed once it is in use.
type filter struct {
	mac                                                 MAC
	promisc, allMulti, allUni, noMulti, noUni, noBroadc bool
	uniOverflow, multiOverflow                          bool
	uni, multi                                          []MAC
}

var broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// accepts judges a frame by its destination.
func (f *filter) accepts(dst MAC) bool {
	switch {
	case f.promisc:
		return true
	case dst == broadcast:
		return !f.noBroadc
	case dst[0]&1 != 0:
		return !f.noMulti && (f.allMulti || f.multiOverflow || contains(f.multi, dst))
	}
	return !f.noUni && (f.allUni || f.uniOverflow || dst == f.mac || contains(f.uni, dst))
}

func contains(list []MAC, m MAC) bool {
	for i := range list {
		if list[i] == m {
			return true
		}
	}
	return false
}
