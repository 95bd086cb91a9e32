// Package policy holds the decisions of a live migration that a researcher
// wants to change: in which order pages go, how a page is encoded, how far the
// guest is slowed, and when to stop copying and move.
//
// Each is an interface of one idea, chosen by name: NAME[,key=value..]. To add
// one, write a type, register it, and run it through the suite in policytest:
//
//	func init() { policy.Orders.Register("my-order", newMyOrder) }
//
// A policy belongs to one migration. The engine calls Order, Throttle and Stop
// from one goroutine; a Codec has its own rules. None of them may block, and
// none may keep the slices that it is handed.
package policy
