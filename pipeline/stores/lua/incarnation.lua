-- The incarnation of a stream, as "number-run": it ends where Redis may have forgotten the last moments of it (another start, or
-- another server took over), and the next has the next number. Within one, ids only grow; a later one may give those of an earlier again.
local function incarnation(books)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  run = string.format('%.0f', tonumber(string.sub(run, 1, 8), 16))
  local stands = redis.call('HGET', books, 'incarnation') or '0-0'
  local number, of = string.match(stands, '^(%d+)-(%d+)$')
  return of == run and stands or string.format('%d-%s', number + 1, run)
end
