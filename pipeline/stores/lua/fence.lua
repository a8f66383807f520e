-- The fence of every effect of a holder. KEYS[1]: the lease; ARGV[1]: the fencing token of the caller.
local current = redis.call('HGET', KEYS[1], 'token')
if current ~= ARGV[1] then
  return redis.error_reply('FENCED fencing token ' .. ARGV[1] .. ' is behind ' .. (current or 'none'))
end
