-- The incarnation of a stream, as "number-run": it ends where Redis may have forgotten the last moments of it (another start, or
-- another server took over), and the next has the next number. Within one, ids only grow; a later one may give those of an earlier again.
local function incarnation(books) -- and whether it is a new one, that is not written down yet
  local now = string.format('%.0f', run())
  local stands = redis.call('HGET', books, 'incarnation') or '0-0'
  local number, of = string.match(stands, '^(%d+)-(%d+)$')
  if of == now then return stands, false end
  return string.format('%d-%s', number + 1, now), true
end
