// Package api is the REST interface of a running machine, over a unix socket,
// and its client. Resources have Firecracker's shapes where Firecracker has
// them, so that its tools find what they know; /migration is ours.
//
//	godwit pause ... ─> Client ─ HTTP over a unix socket ─> Server ─> Instance ─> Machine
//	                                                                     ▲          (replaced when
//	                                   godwit run, godwit receive ───────┘           the guest resets)
//
//	GET    /           InstanceInfo: id, state, vmm_version, app_name
//	PATCH  /vm         VMUpdate: {"state":"Paused"} or {"state":"Resumed"}, the latter with "force"
//	GET    /vm/info    Info: memory, vCPUs, exits, boot marks, disks; how the last migration ended
//	PUT    /actions    Action: {"action_type":"InstanceStop"}
//	GET    /balloon    vmm.Balloon, as it now is; PATCH takes {"amount_mib":N}
//	GET    /balloon/statistics  BalloonStats; PATCH takes {"stats_polling_interval_s":N}
//	PATCH  /network-interfaces/ID  NetworkUpdate: {"link_up":false}
//	PATCH  /consoles/ID  ConsoleUpdate: {"columns":132,"rows":50}
//	PUT    /migration  MigrationRequest: starts one; 204, or with ?watch=1 as below
//	GET    /migration  MigrationStatus; with ?watch=1 one a line until the migration has ended
//	PATCH  /migration  MigrationUpdate: bandwidth, downtime limit, throttle
//	DELETE /migration  cancels, and answers when the guest runs on here
//
// An error is {"fault_message": "..."} with 400 for a request that is wrong in
// itself, 404 for an unknown path, a migration that never was or a device that is not there, 409 for what
// the machine's state does not allow. Bodies are bounded and unknown fields
// refused.
//
// Who may use a machine is who may open its socket: it is made with mode 0600.
//
// An Address is where a migration goes or comes from. With TLSFiles its
// connections are TLS 1.3 with certificates on both sides:
//
//	migration engine ─ Read, Write, WriteBuffers ─> secured ─ tls.Conn ─ batch ─> TCP
//	                                           words for errors         many records a system call
//
// The server has no policy of its own. The process that owns the machine holds
// an Instance, gives it the machine with Set and takes it back with Detach.
package api
